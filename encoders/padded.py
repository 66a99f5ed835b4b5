"""Architectures that have no packed forward here: transformers' own, over padded batches.

Only classes that transformers itself has are used, with the configuration and the safetensors of a folder that
`encoders/folder.py` has checked. transformers is imported when such a folder is opened, and only then.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from encoders.bert import Dropout, Packed
from encoders.errors import MissingExtraError, UnsafeFolderError, UnsupportedArchitectureError
from encoders.folder import WEIGHTS, read_object
from encoders.transformer import Transformer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PaddedTransformer(Transformer):
    """Any encoder of transformers. Probabilities of dropout are the configuration's; `forward` can only forgo them."""

    packs = False

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model
        for name, parameter in model.named_parameters():
            # Not used here, and without a gradient.
            parameter.requires_grad_("pooler" not in name.split("."))

    def forward(self, packed: Packed, dropout: Dropout) -> Tensor:
        self.model.train(self.training and dropout != Dropout())
        texts, lengths = zip(*packed.groups, strict=True)
        device = packed.token_ids.device
        length = torch.tensor(lengths, device=device).repeat_interleave(torch.tensor(texts, device=device))
        mask = torch.arange(lengths[-1], device=device) < length[:, None]  # (N, L)
        token_ids = torch.full(mask.shape, self.model.config.pad_token_id or 0, device=device)
        token_ids[mask] = packed.token_ids
        states: Tensor = self.model(input_ids=token_ids, attention_mask=mask.long()).last_hidden_state
        return states[mask]

    @property
    def published(self) -> nn.Module:
        model: nn.Module = self.model
        return model

    @property
    def word_embeddings(self) -> nn.Embedding:
        found: nn.Embedding = self.model.get_input_embeddings()
        return found

    @property
    def layers(self) -> list[nn.Module]:
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        return max(map(list, lists), key=len, default=[])


def load(folder: Path) -> PaddedTransformer:
    """Open a checked folder in float32.

    Raises MissingExtraError, UnsupportedArchitectureError, UnsafeFolderError.
    """
    kind = str(read_object(folder, "config.json").get("model_type"))
    try:
        from transformers import CONFIG_MAPPING, MODEL_MAPPING
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtraError(f"A model of the kind {kind!r}", "transformers") from error
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if kind not in CONFIG_MAPPING:
        raise UnsupportedArchitectureError(f"config.json has model_type {kind!r}, which transformers doesn't know.")
    try:
        config = CONFIG_MAPPING[kind].from_pretrained(folder, local_files_only=True)
    except (ValueError, TypeError, OSError) as error:
        raise UnsafeFolderError(f"config.json is none of a {kind}: {error}") from error
    if type(config) not in MODEL_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedArchitectureError(f"A {kind} is no encoder of texts.")
    classes = MODEL_MAPPING[type(config)]
    model_class = classes[0] if isinstance(classes, tuple) else classes
    if getattr(model_class, "main_input_name", None) != "input_ids":
        raise UnsupportedArchitectureError(f"A {kind} is no encoder of texts.")
    return PaddedTransformer(_read(model_class, config, folder))


def _read(model_class: Any, config: Any, folder: Path) -> Any:
    try:
        # A pooler that the folder lacks is drawn at random, and is not used: let its bytes be the same each time.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, found = model_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise UnsafeFolderError(f"{WEIGHTS} does not fit config.json: {error}") from error
    missing = [name for name in found["missing_keys"] if "pooler" not in name.split(".")]
    if missing or found["mismatched_keys"]:
        wrong = min(missing) if missing else str(min(found["mismatched_keys"]))
        raise UnsafeFolderError(f"{WEIGHTS} does not fit config.json: {wrong} is missing or of another size.")
    return model
