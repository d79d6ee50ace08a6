"""Unknown commands, options and formats, and overrides that contradict."""

from __future__ import annotations

import pickle
from pathlib import Path

from tests.helpers.bad_input import Case, train
from tests.helpers.weights import Malicious


def trap(work: Path) -> None:
    """A pickle with code in it, as Hydra's --experimental-rerun takes one."""
    (work / "rerun.pickle").write_bytes(pickle.dumps(Malicious(work / "trap")))


CASES = [
    Case(["trian"], r"'trian' is not a command; did you mean 'train'"),
    Case(["new-concpet", "otter"], r"'new-concpet' is not a command; .*'new-concept'"),
    train("--steps 100", r"--steps: a key has no dashes; write steps=100"),
    train("--method.lr=1e-4", r"--method\.lr=1e-4: a key has no dashes; write method\.lr=1e-4"),
    Case(["train", "--concept", "panda"], r"--concept: a key has no dashes; write concept=panda"),
    Case(["train", "concept=panda", "concept.name=Pokémon"], r"write 'concept\.name=\"Pokémon\"'"),
    Case(
        ["train", "concept=panda", "concept.name=O'Keeffe"], r"as text, write 'concept\.name=\"O'"
    ),
    train("run_dir=~/runs", r"run_dir=~/runs: .*; write run_dir=/\S*/runs"),
    Case(
        ["train", "concept=van_gogh"],
        r"concept=van_gogh: the embedded model does not know it; add model=sd14$",
    ),
    Case(["train", "esd"], r"esd: not of the form KEY=VALUE .*; write method=esd"),
    train("--fast", r"option='--fast' is unknown; did you mean"),
    train("--experimental-rerun rerun.pickle", r"option='--experimental-rerun' is unknown", trap),
    train("--experimental-rerun=rerun.pickle", r"option='--experimental-rerun' is unknown", trap),
    train("--config-dir /tmp", r"option='--config-dir' is unknown"),
    train("--resolve", r"--resolve flag can only be used in conjunction with --cfg"),
    train("--cfg job -m", r"Only one of --run, --multirun, --cfg"),
    train("concept=[panda,noto] --cfg job", r"--cfg: shows one concept's configuration"),
    Case(["train", "panda"], r"panda: not of the form KEY=VALUE \(.*\); write concept=panda"),
    Case(["train", "concept=[panda"], r"concept=\[panda: not of the form KEY=VALUE"),
    train("concept=panda,rabbit", r"Ambiguous value for argument 'concept=panda,rabbit'"),
    train("concept=[panda,panda]", r"concept=\[panda, panda\]: forgotten twice"),
    train("concept=[]", r"concept=\[\]: at least one concept is needed"),
    train("concept=[panda,noto] concept.kind=style", r"concept\.kind=style: it would hold for"),
    train("concept=custom", r"concept\.name is missing: choose a file of conf/concept"),
    Case(["evaluate"], r"usage: unlearn evaluate RUN_DIR\.\.\. "),
    Case(["evaluate", "run", "method=esd"], r"method=esd: run is a run directory"),
    Case(["evaluate", "run", "evaluation.first_sed=2"], r"first_sed=2: .*'first_seed'"),
    Case(["evaluate", "run", "evaluation=i2p_light"], r"evaluation=i2p_light: .*'i2p_lite'"),
    Case(["evaluate", "run", "run", "evaluation=i2p"], r"their results would lie in one folder"),
    Case(["sample", "run"], r'usage: unlearn sample RUN_DIR "PROMPT"'),
    Case(["export"], r"usage: unlearn export RUN_DIR \[OUT\]"),
    Case(["export", "run", "format=lra"], r"format='lra' is unknown; did you mean 'lora'"),
    Case(["export", "run", "formt=lora"], r"formt=lora: there is no such key; .*'format'"),
    Case(["export", "run", "error=0.1"], r"error=0\.1: format=folder has no error"),
    Case(
        ["export", "run", "format=lora", "error=2"],
        r"error=2\.0: a finite number of at least 1e-05",
    ),
    Case(["export", "run", "format=lora", "error=x"], r"error: Value 'x'"),
    Case(["merge", "run", "both"], r"usage: unlearn merge RUN_DIR RUN_DIR\.\.\. OUT_DIR"),
    Case(["merge", "run", "run", "both", "scale=0"], r"scale=0\.0: a finite number of more than 0"),
    Case(["merge", "run", "run", "both"], r"concept=\[panda, panda\]: forgotten twice"),
    Case(["sweep-report"], r"usage: unlearn sweep-report DIR"),
    Case(["sweep-report", "nowhere"], r"nowhere: no such folder"),
    Case(["merge", "run", "run", "both", "scale=high"], r"scale: Value 'high' of type 'str'"),
    Case(["export", "run", "a", "b"], r"usage: unlearn export RUN_DIR \[OUT\]"),
    Case(
        ["report", "run", "out=run/config.yaml"], r"is there already, and no report; overwrite=true"
    ),
    Case(["report", "run", "out=run"], r"out=run: a file is needed, in a folder that is there"),
    Case(["report", "run", "out=/dev/null"], r"out=/dev/null: a file is needed"),
    Case(["report", "run", "out=["], r"out=\[: not YAML"),
    Case(["report", "run", "out=${oc.env:HOME}.html"], r"not of the form KEY=VALUE, with a plain"),
    Case(["merge", "run", "run", "both", "scale=["], r"scale=\[: not YAML"),
    Case(["export", "run", "format={"], r"format=\{: not YAML"),
    Case(["demo", "run", "port=["], r"port=\[: not YAML"),
    train("concept=[panda,[rabbit]]", r"at least one concept is needed, and nothing but names"),
    train("model={a:b}", r"model=\{a:b\}: the name of a file of conf/model is needed"),
    train("model=null", r"model=null: the name of a file of conf/model is needed"),
    train("model=[emoji,[x]]", r"model=\[emoji,\[x\]\]: cannot be composed"),
    train("steps=${nope}", r"Interpolation key 'nope' not found"),
    train("hydra.output_subdir=h", r"hydra\.output_subdir=h: is no key for a run"),
    train("hydra.run.dir=h", r"hydra\.run\.dir=h: is no key for a run"),
    train("hydra.job.chdir=true", r"hydra\.job\.chdir=true: is no key for a run"),
    train("~method.lr", r"~method\.lr: method\.lr is missing then"),
    train("~data.images", r"~data\.images: data\.images is missing then"),
    train("concept=[ --cfg job", r"concept=\[: not of the form KEY=VALUE"),
    train("--cfg nope", r"--cfg='nope' is unknown"),
    train("--info nope", r"--info='nope' is unknown"),
    train("-p", r"--package: the name of a package is needed"),
    train("concept.related=" + "[" * 400 + "]" * 400, r"nested too deeply"),
    Case(["new-concept"], r"usage: unlearn new-concept NAME \(letters, digits and _\)"),
]
