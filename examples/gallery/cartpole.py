# SPDX-License-Identifier: BSD-3-Clause
"""
PPO with resets
===============

A pole on a cart, of which the agent sees the positions and not the velocities, so that it must
remember. Proximal policy optimisation learns from rollouts with several episodes one behind the
other: ``reset_mask`` resets the state in mid-sequence, and no loop over the steps does.
"""

from timeit import repeat

import matplotlib.pyplot as plt
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from torch import nn
from torch.distributions import Categorical

from lstm_fused import FusedLSTM

torch.manual_seed(0)
ENVS, STEPS, UNITS, UPDATES = 32, 64, 64, 100


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = FusedLSTM(2, UNITS)
        self.policy, self.value = nn.Linear(UNITS, 2), nn.Linear(UNITS, 1)
        nn.init.orthogonal_(self.policy.weight, 0.01)

    def forward(self, x, state, first):
        y, state = self.lstm(x, state, reset_mask=first)
        return Categorical(logits=self.policy(y)), self.value(y).squeeze(-1), state


def visible(observation):
    """Where the cart and the pole are, scaled; not how fast they move."""
    return torch.tensor(observation[:, [0, 2]] * [1.0, 10.0], dtype=torch.float32)


# %%
# Acting takes steps. ``first`` is True where an episode begins, which resets the state that enters
# this step. Gymnasium's step after an episode's end only begins the next one: such steps hold no
# decision, and the loss leaves them out.
def act():
    global x, first, over, state
    steps = []
    with torch.no_grad():
        for _ in range(STEPS):
            policy, value, state = agent(x[None], state, first[None])
            action = policy.sample()
            following, reward, ended, cut, _ = envs.step(action[0].numpy())
            ends = torch.tensor(ended | cut)
            reward = 0.1 * torch.tensor(reward, dtype=torch.float32)
            seen = (x, first, action[0], policy.log_prob(action)[0], value[0])
            steps.append((*seen, reward, ends, ~over))
            # After an end comes the step that begins anew, and then the first of an episode.
            x, first, over = visible(following), over, ends
        _, value, _ = agent(x[None], state, first[None])
    return map(torch.stack, zip(*steps, strict=True)), value[0]


def advantages(value, last, reward, ends):
    """Generalised advantage estimates, γ = 0.99 and λ = 0.95."""
    result, following = torch.zeros_like(value), torch.zeros(ENVS)
    for t in reversed(range(STEPS)):
        later = last if t == STEPS - 1 else value[t + 1]
        error = reward[t] + 0.99 * later * ~ends[t] - value[t]
        result[t] = following = error + 0.99 * 0.95 * following * ~ends[t]
    return result


# %%
# Learning takes whole rollouts, from the states in which they began: half the environments at a
# time, four times.
def learn(start, x, first, action, old, value, advantage, real):
    for rows in [half for _ in range(4) for half in torch.randperm(ENVS).chunk(2)]:
        policy, guess, _ = agent(x[:, rows], tuple(s[:, rows] for s in start), first[:, rows])
        kept = real[:, rows]
        gain = advantage[:, rows][kept]
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        ratio = (policy.log_prob(action[:, rows]) - old[:, rows])[kept].exp()
        loss = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        wanted = (value + advantage)[:, rows]
        loss = loss + 0.5 * (guess - wanted)[kept].square().mean()
        loss = loss - 0.003 * policy.entropy()[kept].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()


agent = Agent()
optimizer = torch.optim.Adam(agent.parameters(), 3e-3)
envs = CartPoleVectorEnv(num_envs=ENVS, max_episode_steps=500)
x = visible(envs.reset(seed=0)[0])
first, over = torch.ones(ENVS, dtype=torch.bool), torch.zeros(ENVS, dtype=torch.bool)
state = (torch.zeros(1, ENVS, UNITS), torch.zeros(1, ENVS, UNITS))
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, UPDATES)
lasted, ended_at, age = [], [], torch.zeros(ENVS)
for update in range(UPDATES):
    start = state
    (*seen, reward, ends, real), last = act()
    learn(start, *seen, advantages(seen[-1], last, reward, ends), real)
    schedule.step()
    for step in range(STEPS):
        age += real[step]
        lasted += age[ends[step]].tolist()
        ended_at += [update * STEPS + step] * int(ends[step].sum())
        age *= ~ends[step]


# %%
# Thirty-two new episodes, of at most 500 steps, in which the likelier action is taken.
trial = CartPoleVectorEnv(num_envs=ENVS, max_episode_steps=500)
now, memory, upright = visible(trial.reset(seed=1)[0]), None, torch.ones(ENVS, dtype=torch.bool)
steps = torch.zeros(ENVS)
with torch.no_grad():
    while upright.any():
        policy, _, memory = agent(now[None], memory, None)
        observation, _, ended, cut, _ = trial.step(policy.probs[0].argmax(1).numpy())
        steps += upright
        upright &= ~torch.tensor(ended | cut)
        now = visible(observation)
print(f"episodes last {steps.mean():.0f} steps, the shortest {steps.min():.0f}")
assert steps.mean() > 400

# %%
# What the mask saves: the LSTM's forward and backward over one rollout, against a loop that resets
# by hand.
observations, begins = seen[0], seen[1]


def by_mask():
    y, _ = agent.lstm(observations, start, reset_mask=begins)
    return y


def by_loop():
    h, c = start
    steps = []
    for t in range(STEPS):
        keep = (~begins[t]).float()[None, :, None]
        y, (h, c) = agent.lstm(observations[t : t + 1], (h * keep, c * keep))
        steps.append(y)
    return torch.cat(steps)


torch.testing.assert_close(by_mask(), by_loop())


def best_time(run):
    return 1000 * min(repeat(lambda: run().sum().backward(), number=1, repeat=10))


times = {"loop over steps": best_time(by_loop), "reset_mask": best_time(by_mask)}

figure, (left, right) = plt.subplots(
    1, 2, figsize=(8, 3.2), width_ratios=(2, 1), layout="constrained"
)
left.plot(ended_at, lasted, ".", markersize=3)
left.set(xlabel="steps of each environment", ylabel="steps that an episode lasts")
right.bar(list(times), list(times.values()), color=["gray", "C3"])
right.set(ylabel="forward and backward, ms")
plt.show()
