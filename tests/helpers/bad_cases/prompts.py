"""Packs, templates, prompts that the model cannot read, and protocols' files."""

from __future__ import annotations

from tests.helpers.bad_input import Case, files, free, train


def pack(content: str | bytes, message: str, more: str = "", **options: bool) -> Case:
    """A prompt pack of the anchor dog."""
    given = f"concept.name=otter anchor.prompts=pack.txt {more}"
    return free(given, rf"^unlearn: .*{message}", prepare=files(pack_dot_txt=content), **options)


def sample(prompt: str, message: str) -> Case:
    """A prompt to draw with a run."""
    return Case(["sample", "run", prompt], message, loads=True)


def protocol(content: str | bytes, message: str, *more: str) -> Case:
    """A protocol's prompt file of one's own."""
    given = ["evaluation=coco30k", "evaluation.sha256=null", "evaluation.clip=emoji"]
    chosen = ["evaluation.prompts_file=own.csv", *given, *more]
    return Case(["evaluate", "run", *chosen], message, files(own_dot_csv=content))


LONG = "a dog" + ", on a blue background" * 9
CASES = [
    pack("a cat\n", "anchor.prompts='pack.txt': holds the anchor 'dog' not exactly once: 'a cat'"),
    pack("a dog by a dog\n", "holds the anchor 'dog' not exactly once: 'a dog by a dog'"),
    pack("a hotdog\n", "holds the anchor 'dog' not exactly once: 'a hotdog'"),
    pack("\n \n", "anchor.prompts='pack.txt': holds no prompts"),
    pack(b"a dog \xe9\n", "anchor.prompts='pack.txt': not a text file in UTF-8: 'utf-8' codec"),
    pack(f"a dog\n{LONG}\n", "the limit is 32, so 'blue background , .*' would be cut", loads=True),
    pack("a dog on 日本\n", r"tokenizer does not know \['日本'\]", loads=True),
    pack("a dog <|endoftext|>\n", r"does not know \['<\|endoftext\|>'\]", loads=True),
    pack("<script>a dog</script>\n", r"does not know \['<script>a', .*'\]", loads=True),
    free("concept.name=otter anchor.prompts=.", r"anchor\.prompts='\.': no such file, nor one of"),
    free("concept.name=otter anchor.prompts=dgo", r"anchor\.prompts='dgo': no such file, nor one"),
    free("concept.name=monet concept.kind=style", r"anchor\.prompts=null: a style needs a prompt"),
    free("concept.name=dog", r"concept\.targets=\['dog'\]: also given as anchor"),
    train("concept.targets=['']", r"concept\.targets=\[''\]: an empty word"),
    train("concept.targets=[panda,panda]", r"concept\.targets=\['panda', 'panda'\]: .*twice"),
    train("concept.related=['']", r"concept\.related=\[''\]: an empty word"),
    train("concept.related=[baer]", r"concept\.related='baer' is unknown; .*'bear'"),
    train("concept.synonyms={panda:['']}", r"concept\.synonyms\.panda=\[''\]: an empty word"),
    train("concept.synonyms={pnda:[x]}", r"concept\.synonyms='pnda' is unknown; .*'panda'"),
    train("concept.synonyms={panda:[my-PANDA]}", r"'my-PANDA': contains its target 'panda'"),
    train("concept.synonyms={panda:[two-pandas]}", r"'pandas' is the plural of its target 'panda'"),
    pack("a dog beside an otter\n", "names the target 'otter' already: 'a dog beside an otter'"),
    train("concept.synonyms={panda:bear}", r"concept\.synonyms\.panda: Value 'bear' \(str\)"),
    train("concept.seen_templates=['{}','a']", r"concept\.seen_templates='a': holds not exactly"),
    train("concept.seen_templates=['{}{x}']", r"concept\.seen_templates='\{\}\{x\}': holds not"),
    train("concept.unseen_templates=['{}{}']", r"concept\.unseen_templates='\{\}\{\}': holds not"),
    train("concept.seen_templates=['two-{}s']", r"concept\.seen_templates='two-\{\}s': a letter, "),
    train("concept.seen_templates=[]", r"concept\.seen_templates=\[\]: at least one template"),
    train(
        "concept.seen_templates=['my-{}'] concept.unseen_templates=['my-{}']",
        r"concept\.unseen_templates=\['my-\{\}'\]: also among concept\.seen_templates",
    ),
    Case(
        [
            "train",
            "concept=octopus",
            "concept.seen_templates=['an {}']",
            "concept.unseen_templates=['a {}']",
        ],
        r"concept=octopus: 'an octopus' is to be unseen, and unlearning trains on it",
    ),
    train("concept=noto concept.unrelated=[]", r"concept=noto: has no seen target prompts"),
    train("anchor.words=['']", r"anchor\.words=\[''\]: only a style can have no anchor word"),
    train("anchor.words=[bear,cat]", r"anchor\.words=\['bear', 'cat'\]: one word is needed, or"),
    sample(LONG, r"the limit is 32, so 'blue background , .*' would be cut"),
    sample("a ☃", r"prompt 'a ☃': the tokenizer does not know \['☃'\]"),
    protocol("caption\na dog\n", r"not of evaluation\.format='csv': no column 'prompt'"),
    protocol(b"prompt\n\xff\n", r"not of evaluation\.format='csv': 'utf-8' codec"),
    protocol("prompt\n", r"own\.csv: holds no prompts"),
    protocol(
        "prompt,evaluation_seed\na,x\n", r"row 1: evaluation_seed='x': a whole number is needed"
    ),
    protocol("prompt,evaluation_seed\na\n", r"row 1 has not the 2 cells"),
    protocol("prompt,evaluation_seed\na,1,2\n", r"row 1 has not the 2 cells"),
    protocol("prompt,evaluation_guidance\na,nan\n", r"row 1: evaluation_guidance=nan: a finite"),
    protocol("prompt,height,width\na,-8,8\n", r"row 1: height=-8: at least 8 and at most 8192"),
    protocol("prompt,evaluation_seed\na,-1\n", r"row 1: evaluation_seed=-1: at least 0"),
    protocol(
        'prompt,evaluation_seed\n"a,1\nb,2\n', r"line \d: unexpected end of data; a stray quote"
    ),
    protocol(
        'prompt,evaluation_seed\n"a,1\nb,2\nc",3\n', r"row 1 has a cell that holds other rows"
    ),
    protocol("prompt,prompt\na,b\n", r"two columns of one name"),
    protocol("prompt\n\x00\n", r"holds a character NUL"),
    protocol("prompt,evaluation_seed\n ,1\n", r"row 1 has an empty prompt"),
    protocol("", r"caption='\{word\.foo\}': may hold", "evaluation.caption='{word.foo}'"),
    protocol("", r"caption='\{word:>9\}': may hold", "evaluation.caption='{word:>9}'"),
    protocol("", r"caption='\{': may hold", "evaluation.caption='{'"),
    protocol("", r"evaluation\.limit=0: at least 1 and at most", "evaluation.limit=0"),
    protocol("", r"evaluation\.caption='\{x\}': may hold \{word\}", "evaluation.caption='{x}'"),
    Case(
        ["evaluate", "run", "evaluation=coco30k", "evaluation.prompts_file=own.csv"],
        r"own\.csv: its SHA-256 is [0-9a-f]+, the published file's is",
        files(own_dot_csv="prompt\na dog\n"),
    ),
]
