"""The trainable task tokens, kept beside the model.

Legend: S slots, D width of the language model, H heads, R rows of the table (starts, then slots).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tpo_core.errors import CheckpointError
from tpo_core.router.vocabulary import TaskVocabulary


class TaskTokens(nn.Module):
    """Per head: `inputs` rows (start, then S slots) and one `outputs` row (start). All of them train.

    The slots are the learnable v_i of the paper (section 3.1); the start rows train as well, which the release does not do
    (its input rows are detached).
    """

    def __init__(self, vocabulary: TaskVocabulary, hidden: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.hidden = hidden
        names = vocabulary.names
        self.inputs = nn.ParameterDict({n: nn.Parameter(torch.zeros(1 + vocabulary.slots[n], hidden)) for n in names})
        self.outputs = nn.ParameterDict({n: nn.Parameter(torch.zeros(hidden)) for n in names})

    @torch.no_grad()
    def reset(self, embedding_VD: Tensor, output_VD: Tensor, *, copies: Mapping[str, str], seed: int, spread: float = 1.0) -> None:
        """Draw fresh tokens on the scale of the backbone's own rows.

        Args:
            embedding_VD, output_VD: the backbone's input and output tables (only their statistics are used).
            copies: head -> head whose tokens it starts from (`HeadConfig.init_from`).
            seed: of the draw.
            spread: scale of the draw around the mean row, as a share of the tables' own spread.
        """
        generator = torch.Generator().manual_seed(seed)
        mean, scale = embedding_VD.float().mean(0).cpu(), float(embedding_VD.float().std())
        mean_out, scale_out = output_VD.float().mean(0).cpu(), float(output_VD.float().std())
        for name in self.vocabulary.names:
            noise = torch.randn(self.inputs[name].shape, generator=generator)
            self.inputs[name].copy_(mean + spread * scale * noise)
            self.outputs[name].copy_(mean_out + spread * scale_out * torch.randn(self.hidden, generator=generator))
        for name, source in copies.items():
            self.copy_from(name, source)

    @torch.no_grad()
    def copy_from(self, name: str, source: str) -> None:
        """Start a head's input rows as a copy of another's; a head with more slots repeats the last."""
        rows = self.inputs[source]
        wanted = self.inputs[name].shape[0]
        index = torch.arange(wanted).clamp(max=rows.shape[0] - 1)
        self.inputs[name].copy_(rows[index.to(rows.device)])

    def table(self) -> Tensor:
        """Return the input rows in the order of their ids: all starts, then all slots."""
        names = self.vocabulary.names
        starts = [self.inputs[n][:1] for n in names]
        return torch.cat([*starts, *(self.inputs[n][1:] for n in names)])

    def start_rows(self) -> Tensor:
        """Return the output rows of the start tokens, in the order of their ids."""
        return torch.stack([self.outputs[n] for n in self.vocabulary.names])

    def state_by_name(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds: ``<head>/in`` and ``<head>/out``."""
        state = {f"{n}/in": self.inputs[n].detach() for n in self.vocabulary.names}
        return state | {f"{n}/out": self.outputs[n].detach() for n in self.vocabulary.names}

    @torch.no_grad()
    def load_by_name(self, state: Mapping[str, Tensor]) -> None:
        """Take the rows of this model's heads from a checkpoint; rows of heads that are not here are left aside.

        Raises:
            CheckpointError: a row is missing or of another shape.
        """
        for name in self.vocabulary.names:
            for key, parameter in ((f"{name}/in", self.inputs[name]), (f"{name}/out", self.outputs[name])):
                if key not in state:
                    raise CheckpointError(f"tokens.safetensors holds no {key!r}; train head {name!r} first or leave it out")
                if state[key].shape != parameter.shape:
                    raise CheckpointError(
                        f"tokens.safetensors: {key} has shape {tuple(state[key].shape)}, this model expects {tuple(parameter.shape)}; "
                        "use the same backbone and the same number of slots"
                    )
                parameter.copy_(state[key])
