# SPDX-License-Identifier: BSD-3-Clause
"""
Actor and critic with resets
============================

An agent that must remember: at the first step of an episode it is shown a sign, walks along a
corridor of random length, and must turn left or right at its end, as the sign said. Rollouts hold
several episodes one behind the other, so the state is reset in mid-sequence: by ``reset_mask``,
and not by a loop over the steps.
"""

import time

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.distributions import Categorical

from lstm_fused import FusedLSTM

torch.manual_seed(0)
ROWS, STEPS, LONGEST = 32, 64, 12


class Corridors:
    """Many corridors at once. Observations: the sign (-1 or 1; 0 later), and if it is the end."""

    def __init__(self):
        self.left = torch.zeros(ROWS, dtype=torch.long)
        self.sign = torch.zeros(ROWS)
        self.begin(torch.ones(ROWS, dtype=torch.bool))

    def begin(self, rows):
        self.first = rows
        self.left = torch.where(rows, torch.randint(3, LONGEST, (ROWS,)), self.left)
        self.sign = torch.where(rows, torch.randint(0, 2, (ROWS,)) * 2.0 - 1, self.sign)

    def observe(self):
        return torch.stack([self.sign * self.first, (self.left == 0).float()], dim=1)

    def act(self, turn):
        """Turns (0: left, 1: right) count at the end. Rewards, and who begins anew."""
        ends = self.left == 0
        rewards = torch.where(ends, (turn * 2 - 1) * self.sign, torch.zeros(()))
        self.left = self.left - 1
        self.begin(ends)
        return rewards, ends


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = FusedLSTM(2, 64)
        self.head = nn.Linear(64, 3)  # two turns, and the value

    def forward(self, x, state, first):
        y, state = self.lstm(x, state, reset_mask=first)
        scores = self.head(y)
        return Categorical(logits=scores[..., :2]), scores[..., 2], state


# %%
# Acting takes steps, learning the whole rollout from the state in which it began. ``first`` is True
# where an episode begins, which resets the state that enters this step.
agent, corridors = Agent(), Corridors()
optimizer = torch.optim.Adam(agent.parameters(), 3e-3)
state = (torch.zeros(1, ROWS, 64), torch.zeros(1, ROWS, 64))
shares = []
for _ in range(80):
    start, rollout = state, []
    with torch.no_grad():
        for _ in range(STEPS):
            x, first = corridors.observe(), corridors.first
            policy, _, state = agent(x[None], state, first[None])
            turn = policy.sample()[0]
            rollout.append((x, first, turn, *corridors.act(turn)))
    x, first, turn, reward, end = map(torch.stack, zip(*rollout, strict=True))

    policy, value, _ = agent(x, start, first)
    returns, following = torch.zeros(STEPS, ROWS), value[-1].detach() * ~end[-1]
    for t in reversed(range(STEPS)):
        following = reward[t] + 0.97 * following * ~end[t]
        returns[t] = following
    advantage = (returns - value).detach()
    loss = -(policy.log_prob(turn) * advantage).mean()
    loss = loss + 0.5 * (returns - value).square().mean() - 0.01 * policy.entropy().mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(agent.parameters(), 1.0)
    optimizer.step()
    shares.append((reward[end] > 0).float().mean().item())
print(f"right turns in the last rollouts: {sum(shares[-10:]) / 10:.0%}")
assert sum(shares[-10:]) / 10 > 0.9


# %%
# What the mask saves: the learning step of one rollout, against a loop that resets by hand.
def by_mask():
    y, _ = agent.lstm(x, start, reset_mask=first)
    return y


def by_loop():
    h, c = start
    steps = []
    for t in range(STEPS):
        keep = (~first[t]).float()[None, :, None]
        y, (h, c) = agent.lstm(x[t : t + 1], (h * keep, c * keep))
        steps.append(y)
    return torch.cat(steps)


torch.testing.assert_close(by_mask(), by_loop())


def best_time(run, repeats=10):
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run().sum().backward()
        times.append(time.perf_counter() - begin)
    return min(times)


times = {"loop over steps": best_time(by_loop), "reset_mask": best_time(by_mask)}

figure, (left, right) = plt.subplots(
    1, 2, figsize=(8, 3.2), width_ratios=(2, 1), layout="constrained"
)
left.plot(shares)
left.set(xlabel="rollout", ylabel="share of right turns", ylim=(0, 1.05))
right.bar(list(times), [1000 * t for t in times.values()], color=["gray", "C3"])
right.set(ylabel="forward and backward, ms")
plt.show()
