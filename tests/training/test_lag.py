"""A rollout by the policy before the last update: whose it is, how it is weighed, and that stopping changes nothing."""

import copy
import signal
import threading
from dataclasses import replace

import pytest
import torch
from iterations import ENGINE, gradients, token_reward, trained, weights

from tpg.component import component
from tpg.errors import Interrupted
from tpg.estimators.boundaries import EveryTokens
from tpg.estimators.reinforce import ReinforceEMA
from tpg.estimators.remax import ReMax
from tpg.estimators.segment import Segment
from tpg.mismatch import Truncated
from tpg.objectives.ppo_clip import PPOClip
from tpg.rollouts.sampling import Sampling
from tpg.rollouts.transformers import Transformers, TransformersEngine
from tpg.training.checkpoints import Checkpoints, StopRequest
from tpg.training.module import IterationCallback
from tpg.training.options import Checkpointing, Update
from tpg.training.run_folder import RunFolder

LAGGED = replace(ENGINE, lag=1)
UNCUT = Truncated(cap=1e9)
CLOCK = ("timing_s/", "step_time", "perf/")


@component
class Beside(Transformers):
    """An engine with weights of its own, which waits in its thread for a step of the update before it generates."""

    waits_for: str | None = None

    def build(self, policy):
        return BesideEngine(self, policy)


class BesideEngine(TransformersEngine):
    beside_trainer = True

    def __init__(self, options, policy):
        super().__init__(options, policy)
        self.own = copy.deepcopy(policy)
        self.held = False
        self.stepped = threading.Event()
        self.threads = []
        self.fails_at = None

    def hold(self):
        self.own.load_state_dict(self.policy.state_dict())
        self.held = True

    def generate(self, prefixes, sampling, *, on_step, **rest):
        if not self.held:
            self.hold()
        self.held = False
        self.threads.append(threading.current_thread().name)
        if threading.current_thread() is not threading.main_thread():
            if self.options.waits_for == "update":
                assert self.stepped.wait(60), "no update beside the generation"
                self.stepped.clear()
            while self.options.waits_for == "end":
                on_step()
            if len(self.threads) == self.fails_at:
                raise ArithmeticError("no more tokens")
        return TransformersEngine(self.options, self.own).generate(prefixes, sampling, on_step=on_step, **rest)


class Watch(IterationCallback):
    """The policy that each iteration began with, its experience and its row; tells the engine of optimizer steps."""

    def __init__(self, checkpoint=None, save_after=0, fails_at=None):
        self.policies, self.experiences, self.rows = [], [], []
        self.checkpoint, self.save_after, self.fails_at = checkpoint, save_after, fails_at

    def on_fit_start(self, trainer, pl_module):
        pl_module.collector.engine.fails_at = self.fails_at

    def on_iteration_start(self, module, iteration):
        self.policies.append(copy.deepcopy(module.policy))

    def on_train_batch_end(self, trainer, pl_module, *_):
        engine = pl_module.collector.engine
        if isinstance(engine, BesideEngine):
            engine.stepped.set()

    def on_iteration_end(self, module, iteration):
        self.experiences.append(module.experience)
        self.rows.append({name: value for name, value in module.metrics.items() if not name.startswith(CLOCK)})
        if iteration == self.save_after:
            module.trainer.save_checkpoint(self.checkpoint)


def lagged(tmp_path, engine=LAGGED, watch=None, **options):
    watch = watch or Watch()
    options = {"mismatch": UNCUT, "iterations": 4, **options}
    callbacks = [watch, *options.pop("callbacks", ())]
    return trained(tmp_path, engine=engine, callbacks=callbacks, **options), watch


def same_tokens(given, expected):
    for name in ("response_ids_BT", "response_mask_BT", "row_B", "draw_B", "version_B", "rollout_logprobs_BT"):
        assert torch.equal(getattr(given, name), getattr(expected, name)), name


def test_each_rollout_is_by_the_policy_of_one_update_before(tmp_path):
    module, watch = lagged(tmp_path)
    for k, experience in enumerate(watch.experiences):
        version = max(0, k - 1)  # of the rollout of iteration k + 1
        prefixes = module.collector.stream.draw(k + 1, LAGGED)
        expected = TransformersEngine(LAGGED, watch.policies[version]).generate(prefixes, Sampling(), version=version)
        same_tokens(experience.trajectories, expected)
    assert [row["rollout/staleness"] for row in watch.rows] == [0.0, 1.0, 1.0, 1.0]
    gaps = [row["sampling/sampling_logp_difference/mean"] for row in watch.rows]
    assert gaps[0] < 1e-5
    assert min(gaps[1:]) > 1e-3


def test_the_first_iteration_is_that_without_lag(tmp_path):
    (module, _), without = lagged(tmp_path, iterations=1), trained(tmp_path, mismatch=UNCUT)
    assert torch.equal(weights(module), weights(without))


def test_the_gradient_is_the_importance_weighted_one_of_the_policy_that_learns(tmp_path):
    module, watch = lagged(tmp_path, iterations=2, skip=False)  # all responses pass, whatever their weight
    policy, rollout = watch.policies[1], watch.experiences[1].trajectories
    responses = []
    for i in range(len(rollout)):
        prompt = rollout.prompt_ids_BP[i][rollout.prompt_mask_BP[i]]
        response = rollout.response_ids_BT[i][rollout.response_mask_BT[i]]
        logits_SV = policy.model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        logprobs_T = logits_SV.log_softmax(-1).gather(-1, response[:, None])[:, 0]
        responses.append((logprobs_T.sum(), rollout.rollout_logprobs_BT[i, : len(response)].double().sum()))
    rewards_GK = rollout.rewards_B.view(4, 4).double()
    advantages_B = (rewards_GK - (rewards_GK.sum(-1, keepdim=True) - rewards_GK) / 3).flatten()
    ratios_B = torch.stack([(own.detach() - engine).exp() for own, engine in responses])
    assert (ratios_B - 1).abs().max() > 0.05
    own_B = torch.stack([own for own, _ in responses])
    loss = -(ratios_B * advantages_B * own_B).mean()
    expected = torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(policy.parameters()))])
    torch.testing.assert_close(gradients(module)[1], expected, atol=1e-7, rtol=1e-5)
    ess = ratios_B.sum() ** 2 / (ratios_B**2).sum() / 16
    row = watch.rows[1]
    assert [row[f"mismatch/{name}"] for name in ("mean", "max", "ess")] == [
        pytest.approx(float(value), rel=1e-5) for value in (ratios_B.mean(), ratios_B.max(), ess)
    ]


@pytest.mark.parametrize("size", [3, 1])
def test_the_gap_does_not_depend_on_micro_batches(tmp_path, size):
    names = ["mismatch/mean", "mismatch/max", "mismatch/ess", "loss"]
    names += [f"sampling/sampling_logp_difference/{what}" for what in ("mean", "max")]
    (_, whole), (_, parts) = (
        lagged(tmp_path, iterations=2, update=Update(responses_per_microbatch=given)) for given in (16, size)
    )
    for name in names:
        assert parts.rows[1][name] == pytest.approx(whole.rows[1][name], rel=1e-6), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"update": Update(epochs=2, responses_per_minibatch=8), "objective": PPOClip()},
        {"estimator": ReMax()},
        {"estimator": Segment(boundaries=EveryTokens(tokens=3))},
    ],
    ids=["plain", "several steps", "greedy responses", "continuations"],
)
def test_an_engine_beside_the_update_gives_the_same_numbers(tmp_path, options):
    before, expected = lagged(tmp_path, **options)
    fields = {name: getattr(LAGGED, name) for name in ("prompts", "responses_per_prompt", "max_response_tokens", "lag")}
    module, watch = lagged(tmp_path, Beside(**fields, waits_for="update"), **options)
    assert module.collector.engine.threads[-1] == "rollout"
    assert module.collector.engine.threads.count("rollout") == 4
    assert torch.equal(weights(module), weights(before))
    assert watch.rows == expected.rows
    for given, wanted in zip(watch.experiences, expected.experiences, strict=True):
        same_tokens(given.trajectories, wanted.trajectories)


class Evaluating(IterationCallback):
    def on_iteration_start(self, module, iteration):
        collector = module.collector
        collector.engine.generate(collector.stream.held_out(2, LAGGED), Sampling(), on_step=lambda: None)


@pytest.mark.parametrize("engine", [LAGGED, Beside(prompts=4, responses_per_prompt=4, max_response_tokens=8, lag=1)])
def test_evaluation_in_between_changes_nothing(tmp_path, engine):
    module, _ = lagged(tmp_path, engine)
    evaluated, _ = lagged(tmp_path, engine, callbacks=[Evaluating()])
    assert torch.equal(weights(evaluated), weights(module))


@pytest.mark.parametrize("engine", [LAGGED, Beside(prompts=4, responses_per_prompt=4, max_response_tokens=8, lag=1)])
def test_a_resumed_run_gives_the_same_numbers(tmp_path, engine):
    path, options = tmp_path / "boundary.ckpt", {"estimator": ReinforceEMA()}
    whole, watch = lagged(tmp_path, engine, Watch(path, save_after=2), **options)
    resumed, continued = lagged(tmp_path, engine, checkpoint=path, **options)
    assert torch.equal(weights(resumed), weights(whole))
    assert continued.rows == watch.rows[2:]
    same_tokens(continued.experiences[0].trajectories, watch.experiences[2].trajectories)
    assert continued.rows[0]["rollout/staleness"] == 1.0
    if isinstance(engine, Beside):
        assert len(whole.collector.engine.threads) == 5
        assert len(resumed.collector.engine.threads) == 2  # the third iteration's rollout was in the checkpoint


def test_a_stop_during_a_rollout_leaves_the_boundary_with_the_rollout_made_ahead(tmp_path):
    whole, expected = lagged(tmp_path)
    stop, steps = StopRequest(), []

    def check():
        steps.append(1)
        if len(steps) == 30:  # in the third iteration, which generates the fourth's rollout: 8 steps each
            stop.signal = signal.SIGTERM
        stop.check()

    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    with pytest.raises(Interrupted):
        lagged(tmp_path, stop=check, callbacks=[Checkpoints(folder, Checkpointing(every=100), 4, stop)])
    (path,) = folder.checkpoints.iterdir()
    assert path.name == "iteration-000002.ckpt"
    assert torch.load(path, weights_only=True)["tpg"]["ahead"]["iteration"] == 3
    resumed, watch = lagged(tmp_path, checkpoint=path)
    assert torch.equal(weights(resumed), weights(whole))
    assert watch.rows == expected.rows[2:]


def test_what_fails_in_the_thread_is_raised_in_the_run(tmp_path):
    engine = Beside(prompts=4, responses_per_prompt=4, max_response_tokens=8, lag=1)
    with pytest.raises(ArithmeticError, match="no more tokens"):
        lagged(tmp_path, engine, Watch(fails_at=3))


def test_closing_ends_the_thread(tmp_path):
    engine = Beside(prompts=4, responses_per_prompt=4, max_response_tokens=8, lag=1, waits_for="end")
    collector = trained(tmp_path, mismatch=UNCUT, iterations=0).collector
    collector = replace(collector, engine=engine.build(collector.policy))
    with collector:
        collector.collect(1, collector.method.initial_state())
        assert "rollout" in {thread.name for thread in threading.enumerate()}
    assert "rollout" not in {thread.name for thread in threading.enumerate()}


def test_a_request_to_stop_is_met_before_a_thread_begins(tmp_path):
    engine = Beside(prompts=4, responses_per_prompt=4, max_response_tokens=8, lag=1, waits_for="end")
    collector = trained(tmp_path, mismatch=UNCUT, iterations=0).collector
    collector = replace(collector, engine=engine.build(collector.policy))

    def check():
        if collector.engine.threads:
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        replace(collector, on_step=check).collect(1, collector.method.initial_state())
    assert len(collector.engine.threads) == 1
    assert "rollout" not in {thread.name for thread in threading.enumerate()}


def test_the_engine_says_that_it_cannot_work_beside_the_update(tmp_path):
    policy = trained(tmp_path, iterations=0).policy
    assert ENGINE.build(policy).note is None
    assert "before the update, not beside it" in LAGGED.build(policy).note
    assert Beside(lag=1).build(policy).note is None


def test_the_reward_is_that_of_the_lagged_responses(tmp_path):
    _, watch = lagged(tmp_path, iterations=2)
    scored = watch.experiences[1].scored
    expected = [token_reward(sample) for sample in scored.samples]
    assert scored.trajectories.rewards_B.tolist() == pytest.approx(expected)
    ids = [list(sample.token_ids) for sample in scored.samples]
    rows = zip(scored.trajectories.response_ids_BT, scored.trajectories.response_mask_BT, strict=True)
    assert ids == [ids_T[mask_T].tolist() for ids_T, mask_T in rows]
