"""Write the model card of an exported pipeline."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from unlearn.concepts.concept import Concept
from unlearn.config.run_config import ModelConfig
from unlearn.evaluation.table import markdown_table

CARD_TEMPLATE = """---
base_model: {base}
library_name: diffusers
pipeline_tag: text-to-image
tags: [unlearning, {method}]
---

# {base}, with {concept} unlearned

`{method}` made this text-to-image model forget **{concept}** ({kind}). Its targets, and the anchors
beside them: {targets}.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("PATH_OF_THIS_FOLDER"{without})
```

`unlearned.safetensors` holds the changed weights alone: `unlearn.load_unlearned(base_pipeline,
path)` patches the base model with them.

## Measured

Base → unlearned with the 95 % Wilson interval, on the same prompts and noise.

{table}

## Limits

The concept is suppressed, not proven to be gone: adversarial prompts, other languages, image
prompts or fine-tuning can bring it back. What the four prompt sets do not ask was not measured.
Whatever licence and conditions of use the base model has hold here too.

Made with `unlearn`; the run's configuration is `config.yaml`.
"""


def model_card(
    config: ModelConfig, concept: Concept, result: Mapping[str, Any], absent: Sequence[str] = ()
) -> str:
    """Return the model card of an exported run, in Markdown.

    HTML in targets and anchors is escaped, since both may be any text.

    Args:
        config: the run's configuration.
        concept: the concept that the run forgot.
        result: the object of the run's result.json.
        absent: the parts that the pipeline is stored without, as `absent_parts` returns them.
    """
    pairs = ", ".join(f"{t} (to {a or 'no style'})" for t, a in concept.anchors.items())
    return CARD_TEMPLATE.format(
        base=config.base.name,
        without="".join(f", {name}=None" for name in absent),
        method=config.method,
        concept=concept.name,
        kind=concept.kind,
        targets=html.escape(pairs),
        table=markdown_table(result) if result["sets"] else "Not judged.",
    )
