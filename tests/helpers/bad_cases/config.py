"""Bad values and unknown names in a configuration."""

from __future__ import annotations

from tests.helpers.bad_input import train

CASES = [
    train("concept=pandaa", r"^unlearn: concept=pandaa: no such file of conf/concept; .*'panda'"),
    train("anchor=bearr", r"anchor=bearr: no such file of conf/anchor; .*\['bear'"),
    train("method=docco", r"method=docco: no such file of conf/method; .*\['doco'"),
    train("model=sd144", r"model=sd144: no such file of conf/model; .*'sd14'"),
    train("logger=csvv", r"logger=csvv: no such file of conf/logger; .*\['csv'\]"),
    train("concept=[panda,rabit]", r"concept=rabit: no such file of conf/concept; .*\['rabbit'"),
    train("method.lrr=1", r"method\.lrr=1: there is no such key; did you mean one of \['lr'"),
    train("methd=esd", r"methd=esd: there is no such key; did you mean one of \['method'"),
    train("+stepz=9", r"stepz=9: there is no such key; did you mean one of \['steps'"),
    train("+trainer.device=2", r"trainer\.device=2: there is no such key; .*'devices'"),
    train("trainer.max_epochs=3", r"trainer\.max_epochs=3: there is no such key"),
    train("+trainer.max_steps=3", r"trainer\.max_steps=3: there is no such key"),
    train("+trainer.gradient_clip_val=1", r"trainer\.gradient_clip_val=1: there is no such key"),
    train(
        "trainer.log_every_n_steps=0",
        r"log_every_n_steps=0: at least 1 and at most",
    ),
    train("+trainer.profiler=fast", r"trainer\.profiler=fast: .*profiler"),
    train("+method.momentum=1", r"method\.momentum=1: there is no such key"),
    train("method=esd method.warmup_steps=3", r"method\.warmup_steps=3: there is no such key"),
    train("~model", r"^unlearn: model is missing: conf/train\.yaml has it"),
    train("~trainer.devices", r"trainer\.devices is missing"),
    train(
        "~evaluation.images_per_prompt",
        r"evaluation\.images_per_prompt is missing",
    ),
    train("steps=ten", r"steps: Value 'ten' of type 'str' could not be converted to Integer"),
    train("steps=", r"steps: Value '' of type 'str'"),
    train("method.lr=fast", r"method\.lr: Value 'fast'"),
    train("method.lr=nan", r"method\.lr=nan: a finite number of at least 0 and at most 100"),
    train("method.strength=-1", r"method\.strength=-1\.0: a finite number"),
    train("model.guidance_scale=inf", r"model\.guidance_scale=inf: a finite number"),
    train("batch_size=0", r"batch_size=0: at least 1 and at most 1000000 is needed"),
    train("data.images=0", r"data\.images=0: at least 2 and at most 10000000 is needed"),
    train(
        "evaluation.images_per_prompt=0",
        r"images_per_prompt=0: at least 1 and at most 10000 is",
    ),
    train("evaluation.first_seed=-1", r"evaluation\.first_seed=-1: at least 0 and at most"),
    train("seed=-1", r"^unlearn: seed=-1: at least 0 and at most 4294967295 is needed"),
    train("method=uce steps=5", r"steps=5: uce takes none, so steps=0"),
    train(
        "steps=100 method.warmup_steps=100", r"steps=100: the first 100 \(method\.warmup_steps\)"
    ),
    train("method.surgery=updat", r"method\.surgery='updat' is unknown; .*\['update'"),
    train("method=esd method.trained=y", r"method\.trained='y' is unknown; .*\['x', 'u'\]"),
    train("logger=wandb logger.wandb.mode=of", r"logger\.wandb\.mode='of' is unknown; .*'offline'"),
    train(
        "+logger.x.mode=online",
        r"logger\.x=\['mode'\]: an entry with",
    ),
    train(
        "+logger.x._target_=json.JSONDecoder",
        r"_target_=json\.JSONDecoder: is no Logger",
    ),
    train("+callbacks.x._target_=no.Where", r"callbacks\.x\._target_=no\.Where: .*no\.Where"),
    train("method.recipe=doko", r"method\.recipe='doko': there is no such file in conf/recipe"),
    train("dry_run=perhaps", r"dry_run: Value 'perhaps' is not a valid bool"),
    train("concept.kind=instanse", r"concept\.kind='instanse' is unknown; .*\['instance'"),
    train("concept.targets=[pnda]", r"concept\.targets='pnda' is unknown; .*'panda'"),
    train("concept.targets=[]", r"concept\.targets=\[\]: at least one target is needed"),
    train("concept.name=", r"concept\.name='': a name begins with a letter or digit"),
    train("anchor.name=panda", r"concept\.targets=\['panda'\]: also given as anchor"),
    train("trainer.accelerator=tpuu", r"trainer\.accelerator=tpuu, .*invalid accelerator name"),
    train("trainer.devices=0", r"trainer\.devices=0, .*not a valid input"),
    train("trainer.precision=16-mixed", r"trainer\.precision='16-mixed': .*loss scaling"),
    train("evaluation.judge=nowhere", r"evaluation\.judge='nowhere': no model\.safetensors"),
]
