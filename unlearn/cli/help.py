"""Hold what `unlearn --help` and `unlearn COMMAND --help` print."""

from __future__ import annotations

import textwrap

from unlearn.config.concept_files import concepts_by_kind
from unlearn.config.search_path import conf_dir, group_choices


def group_choices_text(command: str) -> str:
    """Return the choices of each group that a command takes, the concepts by model and kind."""
    groups = sorted(p.name for p in conf_dir().iterdir() if p.is_dir())
    groups = [group for group in groups if group not in ("evaluation", "hydra", "recipe")]
    if command == "evaluate":
        groups = ["evaluation", "concept", "model"]
    lines = []
    for group in groups:
        parts = {"": group_choices(group)}
        if group == "concept":
            parts = {f"{kind}: ": names for kind, names in concepts_by_kind().items()}
        prefix = f"  {group:<11} "
        for title, names in parts.items():
            text = f"{title}{', '.join(names)}"
            indent = " " * len(prefix)
            lines.append(textwrap.fill(text, 98, initial_indent=prefix, subsequent_indent=indent))
            prefix = indent
    return "\n".join([*lines, "  each word of `unlearn list words` is a concept too"])


USAGE = """usage: unlearn COMMAND ...

  train        forget a concept, evaluate, and write a run directory
  evaluate     evaluate finished runs again, or by a published protocol
  sample       draw prompts with a run's weights, base beside unlearned
  export       write a run for other programs: diffusers folder, LoRA, delta.bin
  merge        add up what several runs changed, in one model
  report       one HTML page of a run, or of several side by side
  demo         a page to try a run's weights, base beside unlearned
  sweep-report rank the runs of a sweep, and show what differs between them
  new-concept  write a commented file for a concept of your own
  config       what a key of the configuration means: default and allowed values
  list         the concepts, methods, models, protocols and words that there are

`unlearn COMMAND --help` says more, `unlearn --version` which version this is.
"""
HELP = {
    "train": """usage: unlearn train [-m] concept=NAME [key=value ...]

  unlearn train concept=panda                       on the embedded model
  unlearn train concept=van_gogh model=sd14         on Stable Diffusion 1.4
  unlearn train concept.name=fox concept.kind=instance anchor.name=dog
  unlearn train -m concept=panda,rabbit seed=0,1    every combination, one run each
  unlearn train sweep=pareto concept=panda          Optuna's search (extra `sweeps`)
  unlearn train 'concept=[panda,noto]'              several, together
  unlearn train concept=noto after=runs/panda-doco-0   one after another
  unlearn train concept=panda trainer=ddp           all GPUs
  unlearn train concept=panda dry_run=true          print the plan, run nothing
  unlearn train concept=panda --cfg job --resolve   print the configuration, run nothing
  eval "$(unlearn train -sc install=bash)"          complete keys and choices in this shell

choices (files of conf/; your own in ./conf/ are found too):
{choices}

Any key of the configuration can be given: steps=500 method.lr=1e-4 data.images=64

In a sweep (-m) a job that fails is kept in error.txt of its run directory and stops no other; the
same command skips what is finished and tries the rest again. Intervals are searched for a low
unseen-target rate and a high retention, hydra.sweeper.trials times:

  unlearn train -m concept=panda 'method.lr=tag(log, interval(1e-5, 1e-4))' run_dir=runs/search
  ... hydra/launcher=pool hydra.launcher.workers=4 hydra.sweeper.max_batch_size=4    side by side
  ... hydra/launcher=submitit_slurm hydra.launcher.partition=gpu                     on SLURM
""",
    "evaluate": """usage: unlearn evaluate RUN_DIR... [evaluation=NAME] [key=value ...]

  unlearn evaluate runs/panda-doco-0                       its four prompt sets again
  unlearn evaluate runs/panda-doco-0 evaluation.images_per_prompt=4    with more images
  unlearn evaluate runs/snoopy-* evaluation=spm_general    a published protocol
  unlearn evaluate PATH concept=snoopy model=sd14 evaluation=spm_general
                     weights from elsewhere: a diffusers folder, a .safetensors, .bin or .pt file

The four prompt sets write result.json, images.csv and before_after.png into RUN_DIR; a protocol
writes RUN_DIR/evaluation/NAME.json. Of weights from elsewhere, out_dir=FOLDER takes the place of
RUN_DIR (default: runs/evaluate-FOLDER-STEM).

trainer.accelerator and trainer.precision say how images are drawn; of the four prompt sets,
sampling_batch_size too. A protocol is drawn in fp32, unless trainer.precision is given.

choices (files of conf/; your own in ./conf/ are found too):
{choices}

A protocol's prompts are fetched on first use and checked against their published hash. Its file of
conf/evaluation holds every key, such as:

  evaluation.limit=5               prompts a concept, to try it (NAME_lite: a small variant)
  evaluation.prompts_file=PATH     the prompts where there is no network: a file, or a folder
  evaluation.sha256=null           takes prompts of one's own from there
  evaluation.clip=PATH             another CLIP; emoji: the embedded model's
  evaluation.inception=PATH        torch-fidelity's Inception weights, for FID and KID
  '~evaluation.concepts.Dog'       leaves a concept out
""",
    "sample": """usage: unlearn sample RUN_DIR "PROMPT" ["PROMPT" ...]

Writes RUN_DIR/sample.png: one row a prompt, the base model beside the unlearned one.
""",
    "export": """usage: unlearn export RUN_DIR [OUT] [format=FORMAT] [error=SHARE] [overwrite=true]

  unlearn export runs/panda-doco-0                 a whole pipeline, in runs/panda-doco-0/export
  unlearn export runs/panda-doco-0 out.safetensors format=lora error=0.001

  format=folder       a diffusers folder, with the delta and a model card (the default)
  format=delta        delta.bin, as DoCo's reference implementation writes it
  format=lora         a LoRA in PEFT's naming, for diffusers
  format=kohya        a LoRA in kohya's naming
  format=single_file  one file in the original Stable Diffusion's naming

error is of a LoRA: how far the change of each layer may be off, relative to its norm (Frobenius;
default 0.01). Each layer gets the least rank that keeps to it. A LoRA holds linear layers alone.
""",
    "merge": """usage: unlearn merge RUN_DIR RUN_DIR... OUT_DIR [scale=1.0]

  unlearn merge runs/panda-doco-0 runs/rabbit-doco-0 runs/both
  unlearn evaluate runs/both                       what each run forgot, in turn

OUT_DIR is a run directory, its weights the base model's plus `scale` times the sum of what each
run changed.
""",
    "report": """usage: unlearn report RUN_DIR... [out=report.html] [overwrite=true]

  unlearn report runs/panda-doco-0
  unlearn report runs/panda-doco-0 runs/panda-esd-0 out=panda.html

One page that needs nothing but itself: the numbers, the images, the training curves, the
configurations, and how to load the weights. Values of the configuration that may be secret are
hidden, and images of unsafe concepts are blurred until they are clicked.
""",
    "demo": """usage: unlearn demo RUN_DIR [port=7860] [host=127.0.0.1]

  unlearn demo runs/panda-doco-0                   http://127.0.0.1:7860, on this machine alone
  unlearn demo runs/panda-doco-0 host=0.0.0.0      for other machines too

A page that draws a prompt with the base and the unlearned model, from the same noise. Needs the
extra `demo`: pip install '.[demo]' in a checkout
""",
    "sweep-report": """usage: unlearn sweep-report DIR [DIR ...]

  unlearn sweep-report runs/panda-doco-pareto
  unlearn sweep-report runs/panda-doco-*           into runs

Writes sweep.md and sweep.csv (the runs ranked, with the settings that differ between them, and
those that failed with their errors), pareto.png and parallel.png, into DIR, or into the folder that
holds the DIRs.
""",
    "new-concept": """usage: unlearn new-concept NAME

Writes conf/concept/NAME.yaml under this folder, to edit; then: unlearn train concept=NAME
""",
    "config": """usage: unlearn config [KEY] [overrides]

  unlearn config                         every key
  unlearn config data.images             one key: its default, meaning and allowed values
  unlearn config method method=esd       a section, as an override chooses it
  unlearn config evaluation evaluation=i2p
""",
    "list": """usage: unlearn list [concepts|methods|models|protocols|words]

  unlearn list methods     with their papers
  unlearn list concepts    by model and kind
  unlearn list words       what the embedded model knows
""",
}
