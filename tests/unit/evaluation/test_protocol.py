"""Published protocols: their files name what was published, and prompts become rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from unlearn.config.compose import compose
from unlearn.config.schema import PROMPT_SETS
from unlearn.config.search_path import conf_dir
from unlearn.evaluation import prompt_files
from unlearn.evaluation.protocol import Protocol, protocol_requests, read_protocol
from unlearn.generation.sampling import SamplingRequest

SHIPPED = sorted({p.stem for p in (conf_dir() / "evaluation").glob("*.yaml")} - {PROMPT_SETS})
COMMITS = {
    "Con6924/SPM": "3dd762e6895b23cd20cf1653a16addc5c16a12f3",
    "nupurkmr9/concept-ablation": "c11fb1bdc7cd97ea65877b0d41722f5e3ef2561f",
    "OPTML-Group/Diffusion-MU-Attack": "5a3e5d37fb8787113e5d479204ab593a60e303e0",
}
BENCHMARK = {
    "vangogh_prompts.csv": "f5386ad62579055f0756e52f84ff44758ea173cbb7824b9874ce2cab52885a37",
    "picasso_prompts.csv": "7c0d5d0cededb2e99d32e4ee864d639aed954cc5959c08a2f2b799143010394b",
    "rembrandt_prompts.csv": "9ba81237f357602779b161a0eda3088630d45bffcc8dab0cc1aba4433af0a629",
    "andy_warhol_prompts.csv": "619a0e2c0431c670ac9bdb4c61de75751070ad3959152c4057ac2dee5ecbbb4d",
    "caravaggio_prompts.csv": "51156b408314fea2808df83e6951be84a91b2b023e7ce2ff7f9f18154e25dac9",
    "i2p_benchmark.csv": "5e78f211b3944d90182ab708ed0bd8af657c24a308153e6ccd5db9d9dbfe50cb",
    "coco_30k.csv": "afa3bdcbc3684f66b9d3a48a9a1fc41ef2a6f0bc2f12e175e0400956e52dd0f3",
}
TEMPLATE_FILE = {
    "clip_templates.py": "0cbc61f54184a54aecb6b52168af81d5db3a13511383a36cee24058d48db85d0",
}
EVAL_PROMPTS = {
    "van_gogh_eval.txt": "6eaeebfe8b649370386a6c67cfd397a9145148d9d2115051ff1a3c1e1b950b48",
    "snoopy_eval.txt": "09285dd297ac83749c65888dea9a7e8081dd2df3454aa692f361392a16459176",
}
ATTACKED = {
    "nudity.csv": "0a40f6e63bca976513d1d56df71480239ba1eb5c7a9de4df2f535d80f6e0eccd",
    "vangogh.csv": "9d0b141b6674b5ef93be5a38c4d220ec56ca1ec096cdfdb5baf0932deca72362",
    "church.csv": "4987e201148cfa3bd3dabfb67e5681ca09e64155cdadf03b0a0c295269d2c18c",
    "parachute.csv": "f44fdef671aecf3f759ef53101e23b5cd614e3da6e2021c3c3d0a1c35a5fe0e5",
}
FOLDERS = {
    "benchmark": BENCHMARK,
    "src/misc": TEMPLATE_FILE,
    "assets/eval_prompts": EVAL_PROMPTS,
    "prompts": ATTACKED,
}
HASHES = {f"{folder}/{name}": h for folder, files in FOLDERS.items() for name, h in files.items()}
NEGATIVE = (
    "bad anatomy,watermark,extra digit,signature,worst quality,jpeg artifacts,normal quality,low "
    "quality,long neck,lowres,error,blurry,missing fingers,fewer digits,missing arms,text,cropped,"
    "Humpbacked,bad hands,username"
)
TEMPLATES = b'imagenet_templates = [\n  "a photo of a {}.",\n  "the {}.",\n  "art of a {}.",\n]\n'


def protocol_of(name: str, *overrides: str, erased: str = "snoopy") -> Protocol:
    config = compose([f"evaluation={name}", *(f"evaluation.{o}" for o in overrides)], "evaluate")
    return read_protocol(config.evaluation, erased)


def erased_of(name: str) -> str:
    entries = compose([f"evaluation={name}"], "evaluate").evaluation.concepts.values()
    return next((e.erased for e in entries if e.get("erased")), "anything")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_protocol_names_published_files(name: str) -> None:
    raw = compose([f"evaluation={name}"], "evaluate").evaluation
    protocol = read_protocol(raw, erased_of(name))
    assert protocol.name == name
    assert protocol.lite == name.endswith("_lite")
    assert protocol.commit == COMMITS[protocol.repository]
    assert protocol.sha256
    assert protocol.sha256.items() <= HASHES.items()
    used = {protocol.file_of(c) for c in protocol.concepts}
    assert used
    assert used <= protocol.sha256.keys()
    assert {e.get("file", raw.get("file")) for e in raw.concepts.values()} == {*protocol.sha256}
    if protocol.calibration:
        assert {m for v in protocol.calibration.values.values() for m in v} == {
            *protocol.calibration.tolerance
        }
        assert protocol.calibration.values.keys() == protocol.concepts.keys()


def test_every_lite_variant_differs_from_its_protocol_in_size_alone() -> None:
    for name in SHIPPED:
        if not name.endswith("_lite"):
            full, lite = protocol_of(name, erased=erased_of(name)), f"{name}_lite"
            small = protocol_of(lite, erased=erased_of(name))
            sizes = ("concepts", "limit", "images_per_prompt", "name", "lite")
            assert replace(small, **{key: getattr(full, key) for key in sizes}) == full
            header = (conf_dir() / "evaluation" / f"{lite}.yaml").read_text().splitlines()[0]
            assert "not the published protocol" in header


def test_spm_s_protocol_is_as_published() -> None:
    for name, images in (("spm_general", 10), ("spm_artists", 20)):
        p = protocol_of(name)
        assert (p.images_per_prompt, p.noise, p.scheduler, p.size) == (
            images,
            "per_call",
            "own",
            512,
        )
        assert (p.num_inference_steps, p.guidance_scale, p.seed) == (30, 7.5, 2024)
        assert p.negative_prompt == NEGATIVE
    for name in ("coco30k", "i2p"):
        assert protocol_of(name).negative_prompt == ""
    published = protocol_of("spm_general").calibration
    assert published
    assert published.values["Legislator"] == {"clip_score": 57.64, "clip_error_rate": 0.0888}


I2P_CSV = (
    "prompt,categories,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model\n"
    '"a, b",x,4261553411,13,512,768,m\nc,y,7,7.5,640,512,m\n'
)
COCO_CSV = 'image_id,source,prompt,evaluation_seed,width,height\n3,c,"A tv\n",41337,428,640\n'
ATTACK_CSV = (
    "Unnamed: 0,prompt,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height\n"
    "21, p ,932309623,7,512,512\n"
)


def test_without_a_network_one_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(prompt_files, "ADDRESS", "http://127.0.0.1:9/{repository}/{commit}/{file}")
    message = r"SPM/3dd7.*/clip_templates\.py: cannot be fetched .*evaluation\.prompts_file=PATH"
    with pytest.raises(ValueError, match=message):
        protocol_requests(protocol_of("spm_general"))


def test_a_file_of_the_user_s_is_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "clip_templates.py"
    path.write_bytes(TEMPLATES)
    known = HASHES["src/misc/clip_templates.py"]
    for given in (path, tmp_path):  # the file, or its folder
        with pytest.raises(ValueError, match=rf"clip_templates\.py: its SHA-256 is .* {known}"):
            protocol_requests(protocol_of("spm_general", f"prompts_file={given}"))
        own = protocol_of("spm_general", f"prompts_file={given}", "sha256=null")
        assert len(protocol_requests(own)["Dog"]) == 3
    with pytest.raises(ValueError, match=r"prompts_file='nowhere': there is no file nowhere"):
        protocol_requests(protocol_of("spm_general", "prompts_file=nowhere", "sha256=null"))
    several = protocol_of("spm_artists", f"prompts_file={path}", "sha256=null")
    with pytest.raises(ValueError, match=r"is one file; a folder .* \['andy_warhol_prompts\.csv'"):
        protocol_requests(several)


def rows(tmp_path: Path, name: str, data: str, *overrides: str, **options: Any) -> Any:
    path = tmp_path / "prompts"
    path.write_text(data, encoding="utf-8")
    given = (f"prompts_file={path}", "sha256=null", *overrides)
    return protocol_requests(protocol_of(name, *given, **options))


def test_templates_become_one_call_of_ten_images_a_prompt(tmp_path: Path) -> None:
    drawn = rows(tmp_path, "spm_general", TEMPLATES.decode())
    assert list(drawn) == ["Snoopy", "Mickey", "Spongebob", "Pikachu", "Dog", "Legislator"]
    assert drawn["Dog"][1] == SamplingRequest("the Dog.", 2024, 7.5, (512, 512), 10)
    assert {shot.seed for shot in drawn["Mickey"]} == {2024}


def test_rows_keep_their_seed_guidance_and_size(tmp_path: Path) -> None:
    assert rows(tmp_path, "i2p", I2P_CSV) == {
        "I2P": [
            SamplingRequest("a, b", 4261553411, 13.0, (768, 512)),
            SamplingRequest("c", 7, 7.5, (512, 640)),
        ]
    }
    coco = rows(tmp_path, "coco30k", COCO_CSV)
    assert coco == {
        "COCO-30k": [SamplingRequest("A tv\n", 41337, 7.5, (640, 424))]
    }  # whole latents
    attack = rows(tmp_path, "unlearndiffatk_prompts", ATTACK_CSV, erased="nudity")
    assert attack == {"nudity": [SamplingRequest(" p ", 932309623, 7.0, (512, 512))]}


def test_concept_ablation_puts_each_word_in_the_target_s_place(tmp_path: Path) -> None:
    drawn = rows(tmp_path, "concept_ablation", "a happy snoopy\na snoopy asleep\n")
    assert {name: len(shots) for name, shots in drawn.items()} == {
        "snoopy": 40, "dog": 40, "beagles": 10, "basset hound": 10, "harrier dog": 10,
        "english foxhound": 10,
    }  # fmt: skip
    assert drawn["basset hound"][5:7] == [
        SamplingRequest("a basset hound asleep", seed, 6.0, (512, 512)) for seed in (47, 48)
    ]
    style = protocol_of("concept_ablation", erased="van_gogh")
    assert list(style.concepts) == ["van gogh"]
    assert style.caption_of("van gogh", "") == "A photo depicts van gogh style"


def test_images_of_a_row_with_a_seed_count_on_from_it(tmp_path: Path) -> None:
    shots = rows(tmp_path, "i2p", I2P_CSV, "images_per_prompt=2")["I2P"]
    assert [s.seed for s in shots] == [4261553411, 4261553412, 7, 8]


def test_a_limit_takes_evenly_spaced_prompts(tmp_path: Path) -> None:
    lines = "".join(f"p{i}\n" for i in range(10))
    for limit, kept in ((4, "p0 p2 p5 p7"), (1, "p0"), (10, None), (99, None)):
        shots = rows(tmp_path, "i2p", lines, f"limit={limit}", "format=lines")["I2P"]
        assert [s.prompt for s in shots] == (kept.split() if kept else lines.split())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["format=json"], r"evaluation\.format='json' is unknown"),
        (["noise=gpu"], r"evaluation\.noise='gpu' is unknown; .*'per_call'"),
        (["scheduler=ddpm"], r"evaluation\.scheduler='ddpm' is unknown"),
        (
            ["images_per_prompt=0"],
            r"evaluation\.images_per_prompt=0: at least 1 and at most 10000 is needed",
        ),
        (["limit=0"], r"evaluation\.limit=0: at least 1 and "),
        (["size=100"], r"evaluation\.size=100: a multiple of 8 is needed"),
        (["eta=1.0"], r"evaluation\.eta=1\.0: evaluation\.scheduler=ddim alone has one"),
        (["num_inference_steps=many"], r"evaluation\.num_inference_steps: Value 'many'"),
        (["sha256=null"], r"evaluation\.sha256=null: .*evaluation\.prompts_file=PATH too"),
        (["file=other.py"], r"evaluation\.sha256: has no hash for 'other\.py'"),
        (["file=null"], r"evaluation\.concepts\.Snoopy\.file=null"),
        (["caption='{name}'"], r"evaluation\.caption='\{name\}': may hold \{word\}"),
        (["metrics=[clip_acuracy]"], r"evaluation\.metrics='clip_acuracy' is unknown"),
        (["metrics=[clip_accuracy]"], r"evaluation\.concepts\.Snoopy\.anchor=null"),
        (["metrics=[nudity]"], r"evaluation\.nudity=null: the metric nudity needs a preset"),
        (["+nudity=spn"], r"evaluation\.nudity='spn' is unknown; .*'spm'"),
        (["concepts.Dog={image: 3}"], r"evaluation\.concepts\.Dog.*image"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(overrides: list[str], message: str) -> None:
    config = compose(["evaluation=spm_general"], "evaluate")
    OmegaConf.set_struct(config, False)
    for override in overrides:
        key, _, value = override.removeprefix("+").partition("=")
        OmegaConf.update(config, f"evaluation.{key}", OmegaConf.from_dotlist([f"x={value}"]).x)
    with pytest.raises(ValueError, match=message):
        read_protocol(config.evaluation, "snoopy")


def test_a_protocol_without_prompts_for_a_concept_says_which_it_has() -> None:
    message = r"has prompts for models that forgot one of \['church', 'nudity', .*='panda'"
    with pytest.raises(ValueError, match=message):
        protocol_of("unlearndiffatk_prompts", erased="panda")
