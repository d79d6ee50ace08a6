"""Names that climb out, files in the place of folders, loops, and other runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.helpers.bad_input import Case, files, free, train


def loop(work: Path) -> None:
    """A link to itself."""
    (work / "loop").symlink_to(work / "loop")


def spoiled(content: str | bytes) -> Callable[[Path], None]:
    """The run has another config.yaml."""
    return files(run__config_dot_yaml=content)


def own(name: str, content: str) -> Callable[[Path], None]:
    """A file of the user's own conf/concept."""
    return files(**{f"conf__concept__{name}_dot_yaml": content})


def without(name: str) -> Callable[[Path], None]:
    """The run lacks a file."""
    return lambda work: (work / "run" / name).unlink()


RUN = r"run_dir=\S*: "
CASES = [
    free("concept.name=../../x", r"concept\.name='\.\./\.\./x': a name begins with a letter"),
    free("concept.name=/etc/x", r"concept\.name='/etc/x': a name begins with a letter"),
    free("concept.name=a/../b", r"concept\.name='a/\.\./b': a name begins"),
    free("concept.name=.ssh", r"concept\.name='\.ssh': a name begins"),
    free("concept.name='<script>'", r"concept\.name='<script>': a name begins"),
    train("run_dir=", r"run_dir='': a folder's name is needed"),
    train("run_dir=run", RUN + r"holds a run with \S+=\S+, not "),
    train("run_dir=other", RUN + "its config.yaml is", files(other__config_dot_yaml="a: 1")),
    train("run_dir=text", RUN + r"cannot be written \(File exists\)", files(text="x"), loads=True),
    train("run_dir=text/run", RUN + r"cannot be written \(Not a dir", files(text="x"), loads=True),
    train("run_dir=loop", RUN + r"cannot be written \(File exists\)", loop, loads=True),
    train("run_dir=loop/run", RUN + r"cannot be written \(Too many levels", loop, loads=True),
    train(f"run_dir={'x' * 300}", r"run_dir=x+: File name too long; choose another run_dir"),
    train("model.pretrained=.", r"model\.pretrained='\.': no model_index\.json", loads=True),
    train("after=nowhere", r"nowhere: not a finished run directory, config\.yaml is missing"),
    train("after=", r"not a finished run directory, config\.yaml is missing"),
    train("after=run", r"after=run: it was made for the base model"),
    Case(["evaluate", "nowhere"], r"nowhere: there is no such file or folder"),
    Case(["evaluate", "."], r"\.: not a finished run directory, config\.yaml is missing"),
    Case(["evaluate", "loop"], r"loop: there is no such file or folder", loop),
    Case(
        ["sample", "run", "a"],
        r"run: not a finished run directory, unlearned\.safetensors is missing",
        without("unlearned.safetensors"),
    ),
    Case(["sample", "run", "a"], r"config\.yaml: not a run's: .*utf-8", spoiled(b"\xff")),
    Case(["sample", "run", "a"], r"config\.yaml: not a run's: ", spoiled("a: [")),
    Case(["export", "run"], r"config\.yaml: not a run's: it holds no keys", spoiled("[1]")),
    Case(["export", "run"], r"not a run's: it has no section 'concept'", spoiled("a: 1")),
    Case(["export", "run", "run"], r"run: is not empty; name a folder that does not exist"),
    Case(["export", "run"], r"run: result\.json is missing; `unlearn evaluate run`"),
    Case(["export", "run", "a.bin", "format=lora"], r"a\.bin: .* ends in \.safetensors"),
    Case(["export", "run", "a.bin", "format=delta"], r"a\.bin: name a file", files(a_dot_bin="x")),
    Case(["export", "run", "a/b.bin", "format=delta"], r"File exists: 'a'", files(a="x")),
    Case(["merge", "run", "run", "out"], r"out: is a run or a file already", files(out="x")),
    Case(["merge", "run", "run", "run"], r"run: is a run or a file already"),
    Case(["new-concept", "../x"], r"usage: unlearn new-concept NAME"),
    Case(["new-concept", "a/b"], r"usage: unlearn new-concept NAME"),
    Case(["new-concept", "panda"], r"panda: a shipped concept has this name"),
    Case(["new-concept", "otter"], r"otter\.yaml: exists already", own("otter", "")),
    Case(["new-concept", "otter"], r"Not a directory: 'conf/concept'", files(conf="x")),
    train("concept=own", r"expected the node content.*own\.yaml", own("own", "a: [")),
]  # fmt: skip
