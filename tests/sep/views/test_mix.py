"""Mixes of views: shares, draws, and nothing drawn by the mix of the paper."""

from __future__ import annotations

from collections import Counter

import torch

from sep.views.mix import each_its_own, looks, one_a_batch, turns
from sep.views.registry import Look, kinds, view
from tests.sep.views.test_registry import pictures

MIX = ("none", "jpeg-10", "blur", "jpeg-10")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_view_has_its_shares_of_the_looks() -> None:
    dealt = looks(MIX, 40, 8, generator())
    assert Counter(each.name for each, _ in dealt) == {"none": 10, "jpeg-10": 20, "blur": 10}
    assert [each.name for each in kinds(MIX)] == ["none", "jpeg-10", "blur"]
    assert len({look.seed for _, look in dealt}) == 40
    assert {look.eps_levels for _, look in dealt} == {8}
    again, others = ([(each.name, look) for each, look in looks(MIX, 40, 8, generator(seed))] for seed in (0, 1))
    assert again == [(each.name, look) for each, look in dealt] != others


def test_a_step_is_dealt_to_the_members_that_are_drawn_for_it() -> None:
    drawn = [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    dealt = turns(drawn, MIX, 8, generator())
    for step in dealt:  # as many members as shares: each step has the whole mix
        assert [k // 3 for k, _ in step] == [0, 1, 2, 3]
        assert Counter(k % 3 for k, _ in step) == {0: 1, 1: 2, 2: 1}
    assert len({tuple(k % 3 for k, _ in step) for step in dealt}) > 1


def test_none_alone_draws_nothing() -> None:
    draw, images = generator(), pictures(8, 8)
    before = draw.get_state()
    assert turns([[0, 2], [1, 2]], ("none",), 8, draw) == [[(0, Look()), (2, Look())], [(1, Look()), (2, Look())]]
    assert each_its_own(images, ("none", "none"), draw) is images
    ((seen, _),) = one_a_batch([(images, torch.zeros(4))], ("none",), draw)
    assert seen is images
    assert torch.equal(draw.get_state(), before)


def test_each_training_image_is_seen_in_one_view() -> None:
    images = pictures(16, 16, count=60)
    seen = each_its_own(images, MIX, generator())
    assert seen.dtype == torch.uint8
    forms = {each.name: each.on_levels(images.float(), Look()) for each in kinds(MIX)}
    of = Counter(next(name for name, form in forms.items() if torch.equal(form[i], seen[i].float())) for i in range(60))
    assert of["none"] > 5
    assert of["blur"] > 5
    assert of["jpeg-10"] > of["blur"]
    assert torch.equal(each_its_own(images, MIX, generator()), seen)


def test_a_batch_is_seen_in_one_view() -> None:
    images, labels = pictures(16, 16), torch.arange(4)
    forms = [view(name).on_levels(images.float(), Look()) for name in ("none", "blur")]
    seen = [batch for batch, _ in one_a_batch([(images, labels)] * 12, ("none", "blur"), generator())]
    which = [[torch.equal(form, batch.float()) for form in forms].index(True) for batch in seen]
    assert set(which) == {0, 1}
