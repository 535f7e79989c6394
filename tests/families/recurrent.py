"""Recurrent layers, torch's and one written by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .family import Family, tokens


class Recurrent(nn.Module):
    """torch's recurrent layers between two linear ones."""

    def __init__(self, kind: Any, width: int, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.first, self.body, self.last = nn.Linear(6, 7), kind(7, 8, **options), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if not self.options.get("batch_first"):
            x = x.transpose(0, 1)
        return self.last(self.body(x)[0])


class Final(nn.Module):
    """Reads the last hidden state, and starts from one that it computes."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.layers = layers
        self.start, self.body, self.last = nn.Linear(6, 8), nn.GRU(6, 8, layers, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        start = self.start(x.mean(1)).expand(self.layers, -1, -1).contiguous()
        return self.last(self.body(x, start)[1][-1])


class Zeros(nn.Module):
    """Starts from zeros of a size that the code keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 8
        self.body, self.last = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros(1, len(x), self.hidden)
        return self.last(self.body(x, (zeros, zeros))[0])


class Cells(nn.Module):
    """A cell, stepped by a loop in Python."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cell, self.last = kind(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            out.append(state[0] if isinstance(state, tuple) else state)
        return self.last(torch.stack(out, 1))


class MinimalGate(nn.Module):
    """A gated unit written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.ins, self.again, self.last = nn.Linear(6, 16), nn.Linear(8, 16, bias=False), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.again.in_features)
        for step in x.unbind(1):
            gate, candidate = (self.ins(step) + self.again(h)).chunk(2, -1)
            gate = gate.sigmoid()
            h = gate * h + (1 - gate) * candidate.tanh()
        return self.last(h)


class Packed(nn.Module):
    """Sequences of different lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
        out, _ = nn.utils.rnn.pad_packed_sequence(self.body(packed)[0], batch_first=True)
        return self.last(out)


class StateSpace(nn.Module):
    """A diagonal recurrence, as in state-space models."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.rand(8, 3))
        self.first, self.steps, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.skip, self.last = nn.Parameter(torch.rand(8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        step, b, c = nn.functional.softplus(self.steps(x)), self.b(x), self.c(x)
        decay = torch.exp(-step[..., None] * self.rates.exp())
        h, out = x.new_zeros(len(x), *self.rates.shape), []
        for i in range(x.shape[1]):
            h = decay[:, i] * h + (step[:, i] * x[:, i])[..., None] * b[:, i, None, :]
            out.append((h * c[:, i, None, :]).sum(-1))
        return self.last(torch.stack(out, 1) + self.skip * x)


ONE = """
    first | neuron 7 |        | first.{weight,bias} body.weight_ih_l0:1
    body  | neuron 8 | stream | body.{weight,bias}_{hh,ih}_l0 body.weight_hh_l0:1 last.weight:1
"""
CELL = "cell | neuron 8 | stream | cell.{weight,bias}_{hh,ih} cell.weight_hh:1 last.weight:1"

FAMILIES = [
    Family("lstm", lambda: Recurrent(nn.LSTM, 8, batch_first=True), tokens(), ONE),
    Family("gru", lambda: Recurrent(nn.GRU, 8, batch_first=True), tokens(), ONE),
    Family("rnn", lambda: Recurrent(nn.RNN, 8), tokens(), ONE),
    Family(
        "rnn_relu",
        lambda: Recurrent(nn.RNN, 8, nonlinearity="relu", bias=False),
        tokens(),
        """
        first | neuron 7 |        | first.{weight,bias} body.weight_ih_l0:1
        body  | neuron 8 | stream | body.weight_{hh,ih}_l0 body.weight_hh_l0:1 last.weight:1
    """,
    ),
    # Layers and directions have one hidden size.
    Family(
        "lstm_two",
        lambda: Recurrent(nn.LSTM, 8, num_layers=2),
        tokens(),
        """
        first | neuron 7 |        | first.{weight,bias} body.weight_ih_l0:1
        body  | neuron 8 | stream |
            body.{weight,bias}_{hh,ih}_l{0,1} body.weight_hh_l{0,1}:1 body.weight_ih_l1:1 last.weight:1
    """,
    ),
    Family(
        "lstm_both_ways",
        lambda: Recurrent(nn.LSTM, 16, bidirectional=True, batch_first=True),
        tokens(),
        """
        first | neuron 7 |        | first.{weight,bias} body.weight_ih_l0{,_reverse}:1
        body  | neuron 8 | stream |
            body.{weight,bias}_{hh,ih}_l0{,_reverse} body.weight_hh_l0{,_reverse}:1 last.weight:1
    """,
    ),
    Family(
        "gru_two_both_ways",
        lambda: Recurrent(nn.GRU, 16, bidirectional=True, num_layers=2),
        tokens(),
        """
        first | neuron 7 |        | first.{weight,bias} body.weight_ih_l0{,_reverse}:1
        body  | neuron 8 | stream |
            body.{weight,bias}_{hh,ih}_l{0,1}{,_reverse} body.weight_hh_l{0,1}{,_reverse}:1
            body.weight_ih_l1{,_reverse}:1 last.weight:1
    """,
    ),
    Family(
        "lstm_projected",
        lambda: Recurrent(nn.LSTM, 5, proj_size=5, batch_first=True),
        tokens(),
        """
        first                | neuron 7 |        | first.{weight,bias} body.weight_ih_l0:1
        body.weight_hr_l0    | neuron 5 |        | body.weight_hh_l0:1 body.weight_hr_l0 last.weight:1
        body.weight_hh_l0    | neuron 8 | stream | body.{weight,bias}_{hh,ih}_l0 body.weight_hr_l0:1
    """,
    ),
    Family(
        "gru_final",
        Final,
        tokens(),
        """
        start | neuron 8 | stream | start.{weight,bias} body.{weight,bias}_{hh,ih}_l0 body.weight_hh_l0:1 last.weight:1
    """,
    ),
    Family(
        "gru_final_two",
        lambda: Final(2),
        tokens(),
        """
        start | neuron 8 | stream | start.{weight,bias} body.{weight,bias}_{hh,ih}_l{0,1} body.weight_hh_l{0,1}:1
            body.weight_ih_l1:1 last.weight:1
    """,
    ),
    Family("lstm_zeros", Zeros, tokens(), ONE.strip().partition("\n")[2]),
    Family("lstm_cell", lambda: Cells(nn.LSTMCell), tokens(), CELL),
    Family("gru_cell", lambda: Cells(nn.GRUCell), tokens(), CELL),
    Family("rnn_cell", lambda: Cells(nn.RNNCell), tokens(), CELL),
    Family(
        "minimal_gate",
        MinimalGate,
        tokens(),
        """
        ins | neuron 8 | stream | ins.{weight,bias} again.weight {again,last}.weight:1
    """,
    ),
    Family("lstm_packed", Packed, tokens(), ONE.strip().partition("\n")[2]),
    # What the states add up to is a product of two data: both of a new state would have to be silent.
    Family(
        "state_space",
        StateSpace,
        tokens(),
        """
        first | neuron 8 | stream         | {first,steps}.{weight,bias} {steps,b,c,last}.weight:1 {rates,skip}
        b     | neuron 3 | stream         | {b,c}.{weight,bias} rates:1
    """,
    ),
]
