"""Prompt files: each format is read, and what is fetched or given is the published file."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from unlearn.evaluation import prompt_files
from unlearn.evaluation.prompt_files import Prompt, local_file, published_file, read_prompts

TEMPLATES = b'imagenet_templates = [\n  "a photo of a {}.",\n  "the {}.",\n]\n'
HASH = hashlib.sha256(TEMPLATES).hexdigest()

SPM_CSV = ',case_number,prompt,evaluation_seed,artist\n20,20,"Sky, in his style",1214,Him\n'
I2P_CSV = (
    "prompt,categories,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model\n"
    '"a, b",x,4261553411,13,512,768,m\nc,y,7,7.5,640,512,m\n'
)
COCO_CSV = 'image_id,source,prompt,evaluation_seed,width,height\n3,c,"A tv\n",41337,428,640\n'
ATTACK_CSV = (
    "Unnamed: 0,prompt,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height\n"
    "21, p ,932309623,7,512,512\n"
)


@pytest.mark.parametrize(
    ("kind", "text", "prompts"),
    [
        ("csv", SPM_CSV, [Prompt("Sky, in his style", 1214)]),
        (
            "csv",
            I2P_CSV,
            [Prompt("a, b", 4261553411, 13.0, (768, 512)), Prompt("c", 7, 7.5, (512, 640))],
        ),
        ("csv", COCO_CSV, [Prompt("A tv\n", 41337, None, (640, 428))]),
        ("csv", ATTACK_CSV, [Prompt(" p ", 932309623, 7.0, (512, 512))]),
        ("csv", "case_number,prompt\n0,Café\n", [Prompt("Café")]),
        ("lines", "a dog\n\n  a cat", [Prompt("a dog"), Prompt("a cat")]),
        (
            "templates",
            'other = [1]\nimagenet_templates = [\n  "a {}.",\n  "the {}.",  # {}\n]\n',
            [Prompt("a {}."), Prompt("the {}.")],
        ),
    ],
)
def test_each_format_is_read(kind: str, text: str, prompts: list[Prompt]) -> None:
    assert read_prompts(text.encode(), kind, "file") == prompts


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("csv", "text,seed\na,1\n", r"file: not of evaluation\.format='csv': no column 'prompt'"),
        ("csv", "prompt,sd_seed\na,x\n", r"row 1: sd_seed='x': a whole number is needed"),
        ("csv", "prompt,sd_seed\na\n", r"file: not of evaluation\.format='csv'"),
        ("csv", "prompt\n", r"file: holds no prompts"),
        ("lines", "\n \n", r"file: holds no prompts"),
        ("templates", "imagenet_templates = (", r"not Python"),
        ("templates", "templates = ['a {}']", r"no list imagenet_templates"),
        ("templates", "imagenet_templates = ['a dog']", r"more than strings with one \{\} each"),
        ("templates", "imagenet_templates = [open('x')]", r"malformed node"),
    ],
)
def test_what_is_not_of_the_format_is_refused(kind: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompts(text.encode(), kind, "file")


def test_python_source_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    source = f"open({str(trace)!r}, 'w')\nimagenet_templates = ['a {{}}']\n"
    assert read_prompts(source.encode(), "templates", "file") == [Prompt("a {}")]
    assert not trace.exists()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A local stand-in for GitHub, whose files lie in its folder, and an empty cache."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{web.server_port}/{{repository}}/{{commit}}/{{file}}"
    monkeypatch.setattr(prompt_files, "ADDRESS", address)
    yield folder
    web.shutdown()
    web.server_close()


def test_a_file_is_fetched_once_and_checked(server: Path, tmp_path: Path) -> None:
    served = server / "o" / "r" / "c" / "f.txt"
    served.parent.mkdir(parents=True)
    served.write_bytes(TEMPLATES)
    place = ("o/r", "c", "f.txt", HASH)
    assert published_file(*place) == TEMPLATES
    served.write_bytes(b"other")
    assert published_file(*place) == TEMPLATES  # from the cache
    (kept,) = (tmp_path / "cache" / "prompts").iterdir()
    kept.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=rf"f\.txt: its SHA-256 is .*, the published .* {HASH}"):
        published_file(*place)
    assert kept.read_bytes() == b"damaged"  # what is not the file is not kept either
    served.unlink()
    with pytest.raises(ValueError, match=r"cannot be fetched \(HTTP Error 404.*prompts_file=PATH"):
        published_file(*place)


def test_without_a_network_one_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(prompt_files, "ADDRESS", "http://127.0.0.1:9/{repository}/{commit}/{file}")
    message = r"9/o/r/c/f\.txt: cannot be fetched .*evaluation\.prompts_file=PATH"
    with pytest.raises(ValueError, match=message):
        published_file("o/r", "c", "f.txt", HASH)


def test_a_file_of_the_user_s_is_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_bytes(b"mine")
    for place in (path, tmp_path):  # the file, or its folder
        with pytest.raises(
            ValueError, match=rf"f\.txt: its SHA-256 is .*, the published .* {HASH}"
        ):
            local_file(str(place), "folder/f.txt", HASH)
        assert local_file(str(place), "folder/f.txt", None) == b"mine"
    path.write_bytes(TEMPLATES)
    assert local_file(str(path), "folder/f.txt", HASH) == TEMPLATES
    with pytest.raises(ValueError, match=r"prompts_file='nowhere': there is no file nowhere"):
        local_file("nowhere", "folder/f.txt", None)
