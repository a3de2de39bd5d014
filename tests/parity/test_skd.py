"""SKD against released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from medkd.methods.adversarial.skd import (
    fool,
    gradient_penalty,
    hinge_critic,
    max_pool,
    pairwise,
    pixelwise,
    wgan_critic,
)
from medkd.methods.adversarial.skd_critic import SelfAttention, SpectralConv, attend, spectral_weight

Cases = Callable[[str], list[Any]]


def cases(parity: Cases, start: str) -> list[Any]:
    found = [case for case in parity("skd") if case.name.startswith(start)]
    assert found
    return found


def test_pixels(parity: Cases) -> None:
    for case in cases(parity, "pixelwise"):
        s, t = case.inputs["student_logits"], case.inputs["teacher_logits"]
        p = (t / case.hyper["T"]).softmax(1)
        entropy = -(p * p.log()).sum(1).mean()
        # the release: cross-entropy, summed over the batch
        case.check(len(s) * (pixelwise(s, t, case.hyper["T"]) / case.hyper["T"] ** 2 + entropy))


def test_pairs(parity: Cases) -> None:
    for case in cases(parity, "pairwise"):
        s, t = case.inputs["student_feat"], case.inputs["teacher_feat"]
        if "pool_scale" in case.hyper:
            kernel = tuple(int(size * case.hyper["pool_scale"]) for size in s.shape[2:])
            s, t = max_pool(s, kernel), max_pool(t, kernel)
        elif case.hyper["pool"] != "none":
            s, t = max_pool(s, 2), max_pool(t, 2)
        case.check(pairwise(s, t, detach_norm="cirkd" not in case.name))


def test_critic_losses(parity: Cases) -> None:
    losses = {"wgan-gp": wgan_critic, "hinge": hinge_critic}
    for case in cases(parity, "holistic"):
        s, t = case.inputs["critic_out_student"], case.inputs["critic_out_teacher"]
        case.check(losses[case.hyper["adv_type"]](s, t))
        case.near(fool(s), "generator_loss")


def test_gradient_penalty(parity: Cases) -> None:
    for case in cases(parity, "gradient_penalty"):
        x = case.inputs

        def critic(maps: Tensor, x: Any = x) -> Tensor:
            hidden = F.leaky_relu(F.conv2d(maps, x["critic.w1"], x["critic.b1"], padding=1), 0.1)
            return F.conv2d(hidden, x["critic.w2"], x["critic.b2"], padding=1)

        penalty = gradient_penalty(critic, x["student_logits"], x["teacher_logits"], x["alpha"])
        case.check(case.hyper["lambda_gp"] * penalty)


def test_self_attention(parity: Cases) -> None:
    for case in cases(parity, "critic_self_attention"):
        x, dims = case.inputs, case.inputs["feat"].ndim - 2
        block = SelfAttention(dims, case.hyper["in_dim"], squeeze=case.hyper["in_dim"] // case.hyper["qk_dim"]).double()
        names = {"query": "query_conv", "key": "key_conv", "value": "value_conv", "gamma": "gamma"}
        weights = case.weights(block, {own: f"attn.{name}" for own, name in names.items()})
        out = functional_call(block, weights, (x["feat"],))
        case.near(out, "out")
        parts = [{w: weights[f"{name}.{w}"] for w in ("weight", "bias")} for name in ("query", "key", "value")]
        q, k, v = (
            functional_call(block.query if i < 2 else block.value, part, (x["feat"],)) for i, part in enumerate(parts)
        )
        case.near(attend(q, k, v)[1], "attention")
        case.check((out * x["target"]).sum())


def test_spectral_convolution(parity: Cases) -> None:
    for case in cases(parity, "critic_spectral_conv"):
        x, h = case.inputs, case.hyper
        inside, outside = x["conv.weight"].shape[1], x["conv.weight"].shape[0]
        layer = SpectralConv(x["x"].ndim - 2, inside, outside, h["kernel"], stride=h["stride"], padding=h["padding"])
        weights = {"weight": x["conv.weight"], "bias": x["conv.bias"]}
        layer.double().u.copy_(x["u"])
        out = functional_call(layer, weights, (x["x"],))
        case.near(out, "out")
        case.check(out.sum())
        case.near(spectral_weight(x["conv.weight"], x["u"], h["power_iterations"])[1], "u_after")
