import numpy as np

from pipeline.synthesis.quality import attacked_rows


def test_both_sides_of_an_attack_have_as_many_rows_of_each_class():
    sides = (np.repeat([0, 1, 2], [40, 5, 9]), np.repeat([0, 1, 2], [10, 8, 0]))
    members, others = attacked_rows(sides, seed=0)
    for rows, labels in ((members, sides[0]), (others, sides[1])):
        assert np.bincount(labels[rows], minlength=3).tolist() == [10, 5, 0]
        assert len(set(rows.tolist())) == len(rows)
        assert (np.diff(rows) > 0).all()


def test_a_limit_takes_from_every_class_in_turn():
    sides = (np.repeat([0, 1], [40, 5]), np.repeat([0, 1], [30, 30]))
    drawn = attacked_rows(sides, seed=0, most=12)
    for rows, labels in zip(drawn, sides, strict=True):
        assert np.bincount(labels[rows]).tolist() == [7, 5]
    assert [one.tolist() for one in attacked_rows(sides, 0, 12)] == [one.tolist() for one in drawn]
    assert attacked_rows(sides, 1, 12)[1].tolist() != drawn[1].tolist()


def test_without_rows_nothing_is_attacked():
    none = np.zeros(0, np.int64)
    assert [len(rows) for rows in attacked_rows((none, np.zeros(3, np.int64)), 0)] == [0, 0]
