"""What the tests of targets share: inputs of a model, and its whole output."""

from __future__ import annotations

import torch
from models import outputs, token_ids

ROWS = torch.arange(2)
POSITIONS = [2, -1, torch.tensor([1, 3]), torch.tensor(4)]


def inputs_of(model):
    ids = token_ids()
    return [ids, model.get_input_embeddings()(ids).detach()]


def whole(model, position):
    return outputs(model, input_ids=token_ids())[ROWS, position]
