"""The mathematics of the methods, each compared in float64 with a second way to compute it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from healsg.errors import ConfigError
from healsg.losses import classification as losses
from healsg.losses.mixture import share_of_smaller
from healsg.methods import lora, mixing
from healsg.methods.attack import ascend
from healsg.methods.coteaching import exchange
from healsg.methods.labelled import LabelledSamples
from healsg.methods.ldam import CosineLinear
from healsg.methods.logit_adjustment import ShiftedLinear
from healsg.methods.sam import ascent
from healsg.optimizers.schedule_free import ScheduleFreeAdamW
from healsg.training import averaging, layers
from healsg.training.denominator import loss_over
from healsg.training.step import Accumulator, Mean, MicroBatch, Samples

ROWS, CLASSES = 7, 5
Array = np.ndarray[Any, Any]


def numbers(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


OUTPUT = numbers(ROWS, CLASSES)
TARGET = torch.tensor([0, 4, 2, 2, 1, 3, 0])
SOFT = numbers(ROWS, CLASSES, seed=1).softmax(dim=1)
ONE_HOT = torch.eye(CLASSES, dtype=torch.float64)[TARGET]


def softmax(output: Tensor) -> Array:
    exponents = np.exp(output.numpy() - output.numpy().max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def near(found: Tensor | list[Tensor], wanted: Any, tolerance: float = 1e-12) -> None:
    found = torch.stack(found) if isinstance(found, list) else found
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.detach().numpy(), np.asarray(wanted), rtol=tolerance, atol=tolerance)


# --- what a criterion is a mean over ---------------------------------------------------------------------------------

WEIGHTS = numbers(CLASSES, seed=8).abs()
IGNORED = torch.tensor([0, 4, -100, 2, 1, -100, 0])
PIXELS = numbers(ROWS, CLASSES, 3, seed=9)
PLACES = torch.arange(3 * ROWS).view(ROWS, 3) % CLASSES
LITTLE = float((WEIGHTS / 64)[TARGET].sum())
DIVIDED: dict[str, tuple[nn.Module, Tensor, Tensor, float | None]] = {
    "plain": (nn.CrossEntropyLoss(), OUTPUT, TARGET, 7),
    "weights": (nn.CrossEntropyLoss(WEIGHTS), OUTPUT, TARGET, float(WEIGHTS[TARGET].sum())),
    "weights that sum to less than 1": (nn.CrossEntropyLoss(WEIGHTS / 64), OUTPUT, TARGET, LITTLE),
    "ignored": (nn.CrossEntropyLoss(), OUTPUT, IGNORED, 5),
    "both": (nn.CrossEntropyLoss(WEIGHTS, ignore_index=2), OUTPUT, TARGET, float(WEIGHTS[TARGET[TARGET != 2]].sum())),
    "smoothing": (nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.2), OUTPUT, TARGET, float(WEIGHTS[TARGET].sum())),
    "probabilities": (nn.CrossEntropyLoss(WEIGHTS), OUTPUT, SOFT, None),
    "pixels": (nn.CrossEntropyLoss(ignore_index=1), PIXELS, PLACES, float((PLACES != 1).sum()) / 3),
    "likelihood": (nn.NLLLoss(WEIGHTS), OUTPUT.log_softmax(dim=1), TARGET, float(WEIGHTS[TARGET].sum())),
    "labels": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), OUTPUT, SOFT, None),
    "squares": (nn.MSELoss(), OUTPUT, SOFT, None),
}


@pytest.mark.parametrize("case", DIVIDED)
def test_a_loss_and_what_it_is_a_mean_over(case: str) -> None:
    """The value is the criterion's own, bit for bit; halves of the batch, weighed by their counts, give the whole."""
    criterion, output, target, count = DIVIDED[case]
    mean = loss_over(criterion, output, target)
    assert isinstance(mean, Mean)
    assert torch.equal(mean.value, criterion(output, target))
    assert (mean.over is None) == (count is None)
    halves = [loss_over(criterion, output[part], target[part]) for part in (slice(0, 3), slice(3, ROWS))]
    counts = [3, 4] if count is None else [half.over for half in halves if isinstance(half, Mean)]
    if count is not None:
        near(torch.as_tensor(mean.over).double(), count)
    total = sum(half.value * own for half, own in zip(halves, counts, strict=True))  # type: ignore[operator]
    near(total / sum(counts), mean.value.item())  # type: ignore[arg-type, operator]


def test_a_loss_of_ignored_targets_alone_is_nothing() -> None:
    output = OUTPUT.clone().requires_grad_()
    for weight in (None, WEIGHTS):
        mean = loss_over(nn.CrossEntropyLoss(weight), output, torch.full((ROWS,), -100))
        assert isinstance(mean, Mean)
        assert (float(mean.value.detach()), float(mean.over)) == (0.0, 0.0)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(mean.value, output)
        assert not gradient.any()


def test_losses_of_several_terms_add_up() -> None:
    """Terms over the same samples are one; each other is weighed by its own count."""
    samples, one, two = Samples(8, 0, 24, 48), torch.tensor(2.0), torch.tensor(3.0)
    loss = one + 0.5 * (Mean(two, samples) + Mean(two, samples)) + 1.0
    assert [(float(term.value), term.over) for term in loss.terms] == [(3.0, None), (3.0, samples)]
    assert float(loss.value) == 6.0
    micro = MicroBatch(Samples(2, 0, 4, 12), closes=False, parts=2)
    sums = Accumulator(nominal=4.0)
    first, second = sums.weights(loss, micro)
    # of the update: 2 of 12 labelled samples, 8 of 48 unlabelled ones; in the end all is multiplied by 4 / 12
    assert (first * 4 / 12, second * 4 / 12) == pytest.approx((2 / 12, 8 / 48))


# --- losses ----------------------------------------------------------------------------------------------------------


def test_smoothed_labels() -> None:
    wanted = np.full((ROWS, CLASSES), 0.2 / CLASSES)
    wanted[np.arange(ROWS), TARGET] += 0.8
    near(losses.smooth(TARGET, OUTPUT, 0.2), wanted)
    near(losses.smooth(TARGET, OUTPUT), ONE_HOT)
    near(losses.smooth(SOFT, OUTPUT, 0.2), SOFT)


def test_ignored_targets_that_are_smoothed_weigh_nothing() -> None:
    plain, smoothing = nn.CrossEntropyLoss(ignore_index=2), nn.CrossEntropyLoss(ignore_index=2, label_smoothing=0.2)
    target = LabelledSamples(label_smoothing=0.2).class_probabilities(TARGET, OUTPUT, None, plain)
    assert not target[TARGET == 2].any()
    near(loss_over(plain, OUTPUT, target, TARGET).value, smoothing(OUTPUT, TARGET).item())


def test_cross_entropy() -> None:
    near(losses.cross_entropy(OUTPUT, SOFT), F.cross_entropy(OUTPUT, SOFT, reduction="none"))
    near(losses.cross_entropy(OUTPUT, ONE_HOT), -np.log(softmax(OUTPUT)[np.arange(ROWS), TARGET]))


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_generalised_cross_entropy(q: float) -> None:
    p = softmax(OUTPUT)
    near(losses.generalised_cross_entropy(OUTPUT, ONE_HOT, q), (1 - p[np.arange(ROWS), TARGET] ** q) / q)
    near(losses.generalised_cross_entropy(OUTPUT, SOFT, q), (SOFT.numpy() * (1 - p**q) / q).sum(axis=1))


def test_generalised_cross_entropy_at_its_ends() -> None:
    near(losses.generalised_cross_entropy(OUTPUT, ONE_HOT, 1e-9), losses.cross_entropy(OUTPUT, ONE_HOT), 1e-7)
    absolute = np.abs(softmax(OUTPUT) - ONE_HOT.numpy()).sum(axis=1)
    near(losses.generalised_cross_entropy(OUTPUT, ONE_HOT, 1.0), absolute / 2)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_torchvisions_for_two_classes(gamma: float) -> None:
    from torchvision.ops import sigmoid_focal_loss

    scores, target = numbers(9, 1), torch.tensor([0, 1] * 4 + [1])
    wanted = sigmoid_focal_loss(scores[:, 0], target.double(), alpha=-1, gamma=gamma)
    output = torch.cat([torch.zeros_like(scores), scores], dim=1)
    near(losses.focal(output, torch.eye(2, dtype=torch.float64)[target], gamma), wanted, 1e-10)


def test_focal_loss_and_its_gradient() -> None:
    p = softmax(OUTPUT)
    near(losses.focal(OUTPUT, SOFT, 1.5), -(SOFT.numpy() * (1 - p) ** 1.5 * np.log(p)).sum(axis=1))
    sure = torch.tensor([[80.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    losses.focal(sure, torch.tensor([[1.0, 0, 0]], dtype=torch.float64), 0.5).sum().backward()
    assert sure.grad is not None
    assert torch.isfinite(sure.grad).all(), "also where a network is quite sure"


def test_early_learning() -> None:
    p = np.clip(softmax(OUTPUT), 1e-4, 1 - 1e-4)
    near(losses.early_learning(OUTPUT, SOFT), np.log(1 - (p * SOFT.numpy()).sum(axis=1)))


def test_divergence() -> None:
    other = numbers(ROWS, CLASSES, seed=3)
    wanted = F.kl_div(other.log_softmax(1), OUTPUT.softmax(1), reduction="none").sum(dim=1)
    near(losses.divergence(OUTPUT, other), wanted)
    near(losses.divergence(OUTPUT, OUTPUT), np.zeros(ROWS))


COUNTS = torch.tensor([120, 60, 20, 2, 0])


def test_weights_margins_and_priors_of_unequal_classes() -> None:
    n = np.maximum(COUNTS.numpy(), 1).astype(float)
    raw = (1 - 0.999) / (1 - 0.999**n)
    near(losses.class_balanced_weights(COUNTS, 0.999), raw / raw.sum() * len(n))
    near(losses.class_balanced_weights(COUNTS, 0.0), np.ones(len(n)))
    near(losses.margins(COUNTS, 0.5), 0.5 * (n.min() / n) ** 0.25)
    near(losses.priors(COUNTS), n / n.sum())


def test_ldam_is_its_formula() -> None:
    """The paper's: cross entropy of ``s (cos - margin of the sample's own class)``, weighted as torch weighs it."""
    features, head = numbers(ROWS, 4), CosineLinear(nn.Linear(4, CLASSES).double(), 30.0)
    weight = head.weight.detach()
    cosine = (features @ weight.T) / (features.norm(dim=1)[:, None] * weight.norm(dim=1)[None])
    near(head(features), 30 * cosine)
    margins, weights = losses.margins(COUNTS, 0.5), losses.class_balanced_weights(COUNTS, 0.999)
    shifted = cosine.clone()
    for row, target in enumerate(TARGET.tolist()):
        shifted[row, target] -= margins[target]
    wanted = F.cross_entropy(30 * shifted, TARGET, weight=weights)
    own = losses.cross_entropy(head(features) - 30 * margins * ONE_HOT, ONE_HOT)
    share = (ONE_HOT * weights).sum(dim=1)
    near((share * own).sum() / share.sum(), wanted)


def test_a_shifted_layer() -> None:
    layer = ShiftedLinear(nn.Linear(3, CLASSES).double(), losses.priors(COUNTS).log())
    given = numbers(ROWS, 3)
    plain = F.linear(given, layer.weight, layer.bias)
    near(layer.train()(given), plain.detach())
    near(layer.eval()(given), (plain - layer.offset).detach())


def test_co_teaching_exchanges_the_smallest_losses() -> None:
    first, second = numbers(9, seed=1), numbers(9, seed=2)
    of_first, of_second = exchange(first, second, 4)
    assert set(of_first.tolist()) == set(np.argsort(second.numpy())[:4].tolist())
    assert set(of_second.tolist()) == set(np.argsort(first.numpy())[:4].tolist())


# --- mixing ----------------------------------------------------------------------------------------------------------


def test_mixup_of_inputs_and_targets() -> None:
    torch.manual_seed(0)
    given = numbers(ROWS, 3, 4, 4)
    mixed, how = mixing.mixup(given, 0.4)
    share, partner = float(how.share), how.partner.tolist()
    assert sorted(partner) == list(range(ROWS))
    assert 0 < share < 1
    for row in range(ROWS):
        near(mixed[row], share * given[row] + (1 - share) * given[partner[row]])
        near(how.of(ONE_HOT)[row], share * ONE_HOT[row] + (1 - share) * ONE_HOT[partner[row]])


def test_beta_is_numpys() -> None:
    from scipy.stats import beta, kstest

    torch.manual_seed(0)
    drawn = [float(mixing.beta(0.2, OUTPUT)) for _ in range(1500)]
    assert kstest(drawn, beta(0.2, 0.2).cdf).pvalue > 0.01


@pytest.mark.parametrize("shape", [(8, 8), (9, 5), (6, 5, 4)])
def test_cutmix_is_the_papers_box(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges and share as in Algorithm A1: an integer side around a centre, clipped, then counted."""
    given = numbers(ROWS, 2, *shape)
    for seed in range(20):
        share = torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        centres = [seed * 7 % side for side in shape]
        drawn = iter(centres)
        monkeypatch.setattr(mixing, "beta", lambda *_, value=share: value)
        monkeypatch.setattr(torch, "randint", lambda high, size, device, values=drawn: torch.tensor(next(values)))
        torch.manual_seed(seed)
        mixed, how = mixing.cutmix(given, 1.0)
        inside = np.zeros(shape, dtype=bool)
        sides = [int(side * (1 - float(share)) ** (1 / len(shape))) for side in shape]
        low = [max(0, centre - side // 2) for centre, side in zip(centres, sides, strict=True)]
        high = [min(whole, c + side // 2) for whole, c, side in zip(shape, centres, sides, strict=True)]
        inside[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        near(how.share, 1 - inside.mean())
        near(mixed, np.where(inside, given[how.partner].numpy(), given.numpy()))


def test_both_mixings_take_turns() -> None:
    given, kinds = torch.ones(4, 1, 8, 8) * torch.arange(4.0).view(4, 1, 1, 1), set()
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, how = mixing.mix(given, 1.0, 1.0)
        whole = torch.equal(mixed, mixed.round())  # CutMix leaves each pixel as it was
        kinds.add(whole)
        torch.testing.assert_close(how.of(given).mean(dim=(1, 2, 3)), mixed.mean(dim=(1, 2, 3)))
    assert kinds == {True, False}


def test_random_erasing_is_a_rectangle_for_each_sample() -> None:
    torch.manual_seed(0)
    given = torch.zeros(600, 3, 24, 20)
    erased = mixing.random_erasing(given, 0.5)
    changed = (erased != 0).all(dim=1)
    boxes = set()
    for image, noise in zip(changed, erased, strict=True):
        rows, columns = image.any(dim=1).nonzero().flatten(), image.any(dim=0).nonzero().flatten()
        if len(rows):
            box = (int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
            tall, wide = box[1] - box[0], box[3] - box[2]
            assert image.sum() == tall * wide, "all of the rectangle, and nothing else"
            assert (noise != 0).sum() == 3 * tall * wide
            assert (tall + 1) * (wide + 1) >= 0.02 * 480
            assert tall * wide <= 0.4 * 480
            assert max(tall / (wide + 1), wide / (tall + 1)) <= 1 / 0.3
            assert (tall < 24, wide < 20) == (True, True)
            boxes.add(box)
    assert len(boxes) > 200
    share = float(changed.any(dim=2).any(dim=1).float().mean())
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 600)
    assert {box[0] for box in boxes} >= set(range(15))
    assert torch.equal(mixing.random_erasing(given, 0.0), given)


@pytest.mark.parametrize("act", [lambda x: mixing.cutmix(x, 1.0), lambda x: mixing.random_erasing(x, 1.0)])
def test_only_images_are_cut(act: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ConfigError, match=r"^method\.(cutmix|random_erasing): needs images"):
        act(torch.zeros(4, 8))


# --- averages, layers ------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    return made.double()


def moved(model: nn.Module, seed: int) -> nn.Module:
    with torch.no_grad():
        for place, value in enumerate([*model.parameters(), *model.buffers()]):
            if value.is_floating_point():
                value.add_(numbers(*value.shape, seed=100 * seed + place, scale=0.1).abs())
    return model


def test_an_exponential_average_is_torchs() -> None:
    model = network()
    mine, wanted = averaging.Average(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    wanted.update_parameters(model)
    for seed in range(6):
        moved(model, seed)
        with torch.no_grad():
            mine.follow(model.parameters(), model.buffers(), 1 - 0.9)
        wanted.update_parameters(model)
    for one, other in zip(mine.network.parameters(), wanted.module.parameters(), strict=True):
        near(one, other.detach())
    assert torch.equal(mine.network[1].running_mean, model[1].running_mean), "buffers are the network's own"  # type: ignore[index]
    assert not any(parameter.requires_grad for parameter in mine.parameters())


def test_the_warm_up_of_an_exponential_average() -> None:
    shares = [averaging.ema_share(0.99, update) for update in range(1, 2000)]
    assert shares[0] == pytest.approx(9 / 11)
    assert all(later <= earlier for earlier, later in pairwise(shares))
    assert shares[-1] == pytest.approx(0.01)
    left = math.prod(1 - share for share in shares[:100])
    assert left < 1e-8, "hardly anything of the first weights"


def test_a_plain_average_is_the_mean() -> None:
    model = network()
    mine, seen = averaging.Average(model), []
    for seed in range(6):
        moved(model, seed)
        with torch.no_grad():
            mine.follow(model.parameters(), model.buffers(), mine.next_share(seed >= 2))
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        if seed == 1:
            assert all(map(torch.equal, mine.network.parameters(), model.parameters())), "a copy before it begins"
    for place, parameter in enumerate(mine.network.parameters()):
        near(parameter, torch.stack([row[place] for row in seen[2:]]).mean(dim=0))


def test_a_plain_average_begins_anew_in_a_run_that_is_made_longer() -> None:
    """Its start is a share of the run, which then lies after the weights that were averaged already."""
    mine = averaging.Average(network())
    shares = [float(mine.next_share(begun)) for begun in (False, True, True, False, True, True, True)]
    assert shares == pytest.approx([1, 1, 1 / 2, 1, 1, 1 / 2, 1 / 3])


def layers_of(model: nn.Module) -> list[list[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[parameter] for parameter in layer] for layer in layers.layers(model)]


def test_layers_of_plain_chains() -> None:
    assert layers_of(network()) == [["0.weight", "1.weight", "1.bias"], ["4.weight", "4.bias"]]


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 10), ("alexnet", 8), ("vgg11", 11), ("mobilenet_v2", 20), ("vit_b_16", 14)]
)
def test_layers_of_torchvisions_networks(name: str, count: int) -> None:
    from torchvision import models

    from healsg.models.torchvision import set_apart

    with torch.device("meta"):
        model = set_apart(models.get_model(name), 10, name)
    found = layers_of(model)
    assert len(found) == count
    assert found[-1] == ["head.weight", "head.bias"]
    assert sorted(chain(*found)) == sorted(name for name, _ in model.named_parameters())


def test_learning_rates_by_depth_are_timms() -> None:
    """On a vision transformer. Tokens and positions are spared weight decay there, as vectors alone are here."""
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    wanted = {}
    for group in param_groups_layer_decay(model, 0.05, layer_decay=0.75):
        wanted |= dict.fromkeys(group["params"], (group["lr_scale"], group["weight_decay"] > 0))
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for group in layers.scaled_groups(model, 0.75, decay_norms_and_biases=False):
        found |= {names[each]: (group["lr_scale"], group.get("weight_decay", 1) > 0) for each in group["params"]}
    assert len(found) == len(names) == len(wanted)
    tokens = {"cls_token", "pos_embed"}
    for parameter, (scale, decayed) in wanted.items():
        name = names[parameter]
        assert found[name][0] == pytest.approx(scale), name
        assert name in tokens or found[name][1] == decayed


def test_freezing_by_names() -> None:
    model = network()
    layers.freeze(model, "0|*.bias")
    assert {name for name, each in model.named_parameters() if each.requires_grad} == {"1.weight", "4.weight"}
    for pattern, told in (("body", "matches nothing"), ("5", "its modules are 0, 1, 4"), ("*", "leaves nothing")):
        with pytest.raises(ConfigError, match=told):
            layers.freeze(model, pattern)


# --- updates ---------------------------------------------------------------------------------------------------------


def test_the_attack_is_its_formula() -> None:
    """On a linear classifier, whose gradient is ``(p - y) W``."""
    weight, given, target = numbers(4, 6, scale=1.0), torch.rand(5, 6, dtype=torch.float64), torch.arange(5) % 4
    low, high = torch.zeros(6).double(), torch.ones(6).double()
    radius = torch.full((6,), 0.3, dtype=torch.float64)
    begin = given + 0.2 * (torch.rand_like(given) - 0.5)

    def loss(images: Tensor) -> Tensor:
        return F.cross_entropy(images @ weight.T, target)

    found = ascend(loss, given, begin, radius, (low, high), 7, 0.25)
    x, w = np.clip(np.clip(begin.numpy(), given.numpy() - 0.3, given.numpy() + 0.3), 0, 1), weight.numpy()
    for _ in range(7):
        p = softmax(torch.from_numpy(x @ w.T))
        slope = (p - np.eye(4)[target]) @ w
        x = np.clip(np.clip(x + 0.25 * 0.3 * np.sign(slope), given.numpy() - 0.3, given.numpy() + 0.3), 0, 1)
    near(found, x)
    assert loss(found) > loss(begin)


def test_the_ascent_has_the_length_of_its_radius() -> None:
    slopes = [numbers(3, 4), numbers(5)]
    norm = math.sqrt(sum(float((slope**2).sum()) for slope in slopes))
    for found, slope in zip(ascent(slopes, 0.05), slopes, strict=True):
        near(found, 0.05 * slope / norm)
    assert not any(step.any() for step in ascent([torch.zeros(3), torch.zeros(2)], 0.05))


def test_schedule_free_is_its_algorithm() -> None:
    """Algorithm 1 of the paper with all three sequences written down, and AdamW's scales; with a rate that moves."""
    aim, weight = numbers(6, seed=4), nn.Parameter(numbers(6, seed=5))
    late = nn.Parameter(numbers(3, seed=6))
    optimizer = ScheduleFreeAdamW([weight, late], lr=0.1, betas=(0.9, 0.99), weight_decay=0.02)
    z = x = y = weight.detach().numpy().copy()
    second, sum_of_weights, largest = np.zeros(6), 0.0, 0.0
    for step in range(1, 30):
        lr = 0.1 * min(1.0, step / 5)
        optimizer.param_groups[0]["lr"] = lr
        near(weight, y, 1e-10)
        weight.grad = (weight.detach() - aim) ** 3
        late.grad = torch.ones_like(late) if step > 20 else None
        optimizer.step()
        g = (y - aim.numpy()) ** 3
        second = 0.99 * second + 0.01 * g**2
        largest = max(largest, lr)
        sum_of_weights += largest**2
        z = z - lr * (g / (np.sqrt(second / (1 - 0.99**step)) + 1e-8) + 0.02 * y)
        c = largest**2 / sum_of_weights
        x = (1 - c) * x + c * z
        y = 0.1 * z + 0.9 * x
        near(optimizer.averaged([weight])[0], x, 1e-9)
    assert np.abs(x - aim.numpy()).max() < np.abs(numbers(6, seed=5).numpy() - aim.numpy()).max()
    alone = nn.Parameter(numbers(3, seed=6))
    other = ScheduleFreeAdamW([alone], lr=0.1, betas=(0.9, 0.99), weight_decay=0.02)
    for _ in range(9):
        alone.grad = torch.ones_like(alone)
        other.step()
    near(late, alone.detach(), 1e-12)
    assert optimizer.averaged([nn.Parameter(torch.ones(1))])[0] == 1, "what it does not know is what it is"


def test_low_rank_changes_merged_and_unmerged() -> None:
    """A linear layer and convolutions beside ``base(x) + scale up(down(x))``, and a whole network beside its merger."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(6, 5),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv3d(2, 3, 3),
        nn.Conv1d(4, 4, 3, groups=2),
    ]
    inputs = [numbers(3, 6), numbers(3, 4, 7, 7), numbers(2, 2, 5, 5, 5), numbers(2, 4, 9)]
    for layer, given in zip(layers, inputs, strict=True):
        base = copy.deepcopy(layer.double())
        lora.adapt(layer, nn.Identity(), rank=2, alpha=3.0)
        change: Any = layer.parametrizations["weight"][0]  # type: ignore[index]
        near(layer(given), base(given).detach(), 1e-12)
        change.up.data.normal_()
        down, up = change.down.detach(), change.up.detach()
        if isinstance(base, nn.Linear):
            beside = 1.5 * (given @ down.T) @ up.T
        elif base.groups == 1:  # type: ignore[union-attr]
            first = copy.deepcopy(base)
            first.weight, first.bias = nn.Parameter(down.view(2, *base.weight.shape[1:])), None  # type: ignore[operator, union-attr]
            beside = 1.5 * torch.einsum("or,nr...->no...", up, first(given))
        else:
            beside = base._conv_forward(given, 1.5 * (up @ down).view_as(base.weight), None)  # type: ignore[operator, arg-type]
        near(layer(given), (base(given) + beside).detach(), 1e-12)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 8))
    model.add_module("attention", nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    model.add_module("head", nn.Linear(8, 3))
    plain = copy.deepcopy(model.double()).eval()
    lora.adapt(model, model.get_submodule("head"), rank=2, alpha=4.0)
    changes = [module for module in model.modules() if isinstance(module, lora.LowRank)]
    assert len(changes) == 6, "a convolution, a linear layer, and of the transformer two products and two layers"
    for each in changes:
        each.up.data.normal_()
    values = {each: each.detach() for each in model.parameters()}
    given = numbers(5, 1, 8, 8)
    with torch.no_grad():
        assert not torch.allclose(plain(given), model.eval()(given))
        for name, parameter in plain.named_parameters():
            parameter.copy_(lora.merged(model, name, values))
        near(plain(given), model(given), 1e-12)


def test_a_mixture_tells_small_losses_from_large_ones_as_scikit_learn_does() -> None:
    from sklearn.mixture import GaussianMixture

    random = np.random.default_rng(3)
    values = np.concatenate([random.normal(0.3, 0.1, 300), random.normal(2.0, 0.6, 200)])
    scaled = ((values - values.min()) / (values.max() - values.min()))[:, None]
    model = GaussianMixture(2, reg_covar=5e-4, max_iter=200, tol=1e-6, random_state=0).fit(scaled)
    theirs = model.predict_proba(scaled)[:, model.means_.argmin()]
    ours = share_of_smaller(torch.from_numpy(values)).numpy()
    assert np.abs(ours - theirs).mean() < 0.02
    assert torch.isfinite(share_of_smaller(torch.ones(5))).all()
