"""The fused step, what Lightning makes of it, and the 8-bit optimizer's needs."""

import importlib.util
import sys
import types

import pytest
import torch
from iterations import SMOOTH, trained, weights

import tpg.train
from tpg.errors import UserError
from tpg.training.optimizers import AdamW8bit, Optimizer


def stepped(device="cpu", **options):
    """AdamW's first step on weights 1 and -2 with gradients 3 and -0.5."""
    module = torch.nn.Linear(2, 1, bias=False, device=device)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0]]))
    optimizer, _ = Optimizer(lr=0.1, eps=0.5, weight_decay=0.5, **options).build(module, 4)
    module.weight.grad = torch.tensor([[3.0, -0.5]])
    optimizer.step()
    return module.weight[0].tolist(), optimizer


@pytest.mark.parametrize("fused", [True, False, None])
def test_a_step_by_hand_fused_or_not(fused):
    # Decay by 1 - 0.1 * 0.5; after bias correction the first moments are g and |g|: 0.1 * 3 / 3.5 and 0.1 * -0.5 / 1.
    given, optimizer = stepped(fused=fused)
    assert given == pytest.approx([0.95 - 0.3 / 3.5, -1.9 + 0.05], abs=1e-6)
    assert bool(optimizer.defaults["fused"]) is (fused is not False)


def test_a_closure_sees_the_groups_and_is_differentiated():
    parts = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    optimizer, _ = Optimizer(lr=0.1).build(parts[0], 4, [(parts[1], 0.2)])
    seen = []

    def closure():
        seen.append([(len(group["params"]), group["lr"]) for group in optimizer.param_groups])
        loss = sum(part(torch.tensor([3.0, 4.0])).sum() for part in parts)
        loss.backward()
        return loss

    before = [part.weight.detach().clone() for part in parts]
    groups = optimizer.param_groups
    assert optimizer.step(closure).requires_grad
    assert optimizer.param_groups is groups
    assert seen == [[(1, 0.1), (1, 0.2)]]
    for part, weight, lr in zip(parts, before, (0.1, 0.2), strict=True):
        assert (weight - part.weight)[0].tolist() == pytest.approx([lr, lr], rel=1e-4)


def test_no_fused_step_where_there_is_none():
    module = torch.nn.Linear(2, 1, device="meta")
    assert not Optimizer().build(module, 4)[0].defaults["fused"]
    with pytest.raises(UserError, match=r"optimizer.fused=true: there is no fused step on meta"):
        Optimizer(fused=True).build(module, 4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_clips_what_a_fused_step_takes_and_continues_it(tmp_path, precision):
    from lightning.pytorch import LightningModule, Trainer

    class Line(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1, bias=False)
            torch.nn.init.zeros_(self.layer.weight)
            self.norms = []

        def training_step(self, batch, index):
            return (self.layer(batch) * 100).sum()

        def on_before_zero_grad(self, optimizer):
            if self.layer.weight.grad is not None:
                self.norms.append(float(self.layer.weight.grad.norm()))

        def configure_optimizers(self):
            return Optimizer(lr=0.1, fused=True).build(self, 4)[0]

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.tensor([[3.0, 4.0]]), batch_size=1)

    def trained(epochs, checkpoint=None):
        module = Line()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(
            accelerator="cpu", precision=precision, gradient_clip_val=0.5, max_epochs=epochs,
            enable_checkpointing=False, default_root_dir=tmp_path, **quiet,
        )  # fmt: skip
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    whole = trained(4)
    trained(2)
    continued = trained(4, tmp_path / "2.ckpt")
    assert whole.norms == pytest.approx([0.5] * len(whole.norms), rel=1e-2)
    assert whole.norms
    assert torch.equal(whole.layer.weight, continued.layer.weight)
    # Adam's step is the learning rate in each coordinate: four steps down.
    assert whole.layer.weight[0].tolist() == pytest.approx([-0.4, -0.4], abs=1e-3)


def test_eight_bits_need_cuda_and_the_package(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"8-bit AdamW needs a CUDA device"):
        AdamW8bit().check()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs bitsandbytes \(pip install bitsandbytes\)"):
        AdamW8bit().check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_an_8_bit_run_without_cuda_ends_in_one_line_before_anything_is_made(entry, tmp_path):
    code, _, lines = entry(tpg.train, "optimizer=adamw_8bit", "policy=tiny", "logger=[]", f"run_dir={tmp_path / 'run'}")
    assert code == 2
    assert lines == ["error: optimizer: 8-bit AdamW needs a CUDA device, and there is none; use optimizer=adamw"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("paged", [False, True])
def test_eight_bits_are_bitsandbytes_own(monkeypatch, paged):
    made = []

    def kind(name):
        return lambda groups, **options: made.append((name, options)) or torch.optim.SGD(groups)

    optim = types.SimpleNamespace(AdamW8bit=kind("AdamW8bit"), PagedAdamW8bit=kind("PagedAdamW8bit"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.SimpleNamespace(optim=optim))
    optimizer, schedule = AdamW8bit(lr=0.5, eps=0.25, warmup_steps=2, paged=paged).build(torch.nn.Linear(2, 1), 4)
    expected = {"lr": 0.5, "betas": (0.9, 0.99), "eps": 0.25, "weight_decay": 0.0}
    assert made == [("PagedAdamW8bit" if paged else "AdamW8bit", expected)]
    assert schedule.get_last_lr() == [0.25]
    assert len(optimizer.param_groups) == 1


def test_iterations_with_and_without_the_fused_step_agree(tmp_path):
    fused, plain = (
        weights(trained(tmp_path, optimizer=Optimizer(lr=SMOOTH.lr, eps=SMOOTH.eps, fused=choice)))
        for choice in (True, False)
    )
    assert torch.allclose(fused, plain, atol=1e-6)


def test_hooks_of_a_step_run_once_whatever_other_optimizers_there_are():
    weight = torch.nn.Parameter(torch.ones(2))
    torch.optim.AdamW([weight])  # which makes torch run hooks around its own class's `step`
    optimizer, _ = Optimizer().build(torch.nn.Linear(2, 1), 10)
    ran = []
    optimizer.register_step_pre_hook(lambda *_: ran.append("before"))
    optimizer.register_step_post_hook(lambda *_: ran.append("after"))
    optimizer.step()
    assert ran == ["before", "after"]
