from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BertModel

from encoders.bert import pack
from encoders.text import TextEncoder

TEXTS = ["", "a cat", "two cats sat on the mat", "a dog", "one two three four five six seven eight nine ten"]


def test_packing_lays_texts_by_length_and_finds_them_again() -> None:
    packed = pack([np.array([1, 2, 3]), np.array([4]), np.array([5, 6, 7])], torch.device("cpu"))
    assert packed.token_ids.tolist() == [4, 1, 2, 3, 5, 6, 7]
    assert packed.positions.tolist() == [0, 0, 1, 2, 0, 1, 2]
    assert packed.groups == [(1, 1), (2, 3)]
    assert packed.restore.tolist() == [1, 0, 2]
    assert [tuple(group.shape) for group in packed.split(torch.zeros(7, 9))] == [(1, 1, 9), (2, 3, 9)]


def test_gradients_are_those_of_transformers(tiny: TextEncoder, tiny_folder: Path) -> None:
    tokens = [tokenized.ids for tokenized in tiny.tokenize(TEXTS)]
    target = torch.randn(len(TEXTS), tiny.dimension, generator=torch.Generator().manual_seed(1))
    F.mse_loss(tiny(tokens), target).backward()

    peer = BertModel.from_pretrained(tiny_folder, add_pooling_layer=False).eval()
    length = max(map(len, tokens))
    ids = torch.tensor([np.pad(one, (0, length - len(one))).tolist() for one in tokens])
    mask = torch.tensor([[1] * len(one) + [0] * (length - len(one)) for one in tokens])
    hidden = peer(ids, attention_mask=mask).last_hidden_state
    F.mse_loss((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), target).backward()

    gradients = {name: parameter.grad for name, parameter in peer.named_parameters()}
    assert gradients.keys() == {name for name, _ in tiny.transformer.named_parameters()}
    for name, parameter in tiny.transformer.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
