from collections import Counter
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from pipeline.errors import StageError
from pipeline.synthesis.dispatch import Dispatch, Rules, lease_id
from pipeline.synthesis.shards import Shard


def make_shards(count):
    return [Shard(i % 2, i // 2, 4) for i in range(count)]


def make(count=6, **rules):
    return Dispatch(make_shards(count), Rules(**{"group": 2, "ahead": 2, **rules}))


def begin(dispatch, now=0.0):
    lease = dispatch.hand_out(now)
    dispatch.heard(lease.id, now)
    return lease


def finish(dispatch, lease, now):
    news = [dispatch.done(shard) for shard in lease.shards]
    dispatch.ended(lease.id, now)
    return news


def test_groups_go_out_in_order_and_no_more_than_may_be_out():
    dispatch = make(5)
    shards = list(dispatch.shards)
    first, second = dispatch.hand_out(0.0), dispatch.hand_out(1.0)
    assert first.shards == tuple(shards[:2])
    assert second.shards == tuple(shards[2:4])
    assert (first.handed, second.handed) == (0.0, 1.0)
    assert dispatch.hand_out(1.0) is None
    assert finish(dispatch, first, 2.0) == [True, True]
    assert dispatch.hand_out(2.0).shards == (shards[4],)
    assert dispatch.missing == 3
    assert not dispatch.finished


def test_a_run_of_no_shards_is_finished():
    dispatch = make(0)
    assert dispatch.finished
    assert dispatch.hand_out(0.0) is None


def test_a_shard_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match="a shard stands twice"):
        Dispatch([Shard(0, 0, 4), Shard(0, 1, 4), Shard(0, 0, 4)], Rules(2, 2))


def test_a_shard_counts_once_and_one_of_another_run_never():
    dispatch = make(2)
    assert dispatch.done(Shard(0, 0, 4))
    assert not dispatch.done(Shard(0, 0, 4))
    assert not dispatch.done(Shard(7, 0, 4))
    assert dispatch.missing == 1
    assert dispatch.is_done(Shard(0, 0, 4))
    assert not dispatch.is_done(Shard(1, 0, 4))


def test_a_begun_lease_that_is_silent_is_overdue_and_a_waiting_one_is_not():
    dispatch = make(6, ahead=3, silent_seconds=10.0)
    first, second = begin(dispatch, 0.0), begin(dispatch, 1.0)
    dispatch.hand_out(0.0)
    assert dispatch.overdue(10.0) == []
    dispatch.heard(first.id, 5.0)
    assert dispatch.overdue(11.5) == [second]
    assert dispatch.overdue(15.5) == [second, first]
    assert first.begun == 0.0
    dispatch.heard(second.id, 15.5)
    assert dispatch.overdue(15.6) == [first]


def test_a_lost_lease_goes_out_again_first_under_another_id():
    dispatch = make(6)
    first, second = begin(dispatch), begin(dispatch)
    dispatch.done(first.shards[0])
    dispatch.give_up(second.id, "silent")
    dispatch.give_up(first.id, "silent")
    assert dispatch.lost == 2
    again = dispatch.hand_out(1.0)
    assert again.shards == first.shards[1:]
    assert again.id != first.id
    assert dispatch.hand_out(1.0).shards == second.shards


def test_shards_that_a_lost_lease_reports_late_count_and_do_not_go_out_again():
    dispatch = make(4)
    lost = begin(dispatch)
    dispatch.give_up(lost.id, "silent")
    assert dispatch.done(lost.shards[0])
    dispatch.heard(lost.id, 1.0)
    dispatch.ended(lost.id, 1.0, "too late to count")
    again = dispatch.hand_out(1.0)
    assert again.shards == lost.shards[1:]
    assert dispatch.done(lost.shards[1])
    assert dispatch.needless() == [again]
    dispatch.ended(again.id, 2.0)
    assert dispatch.needless() == []
    assert dispatch.hand_out(2.0).shards == tuple(dispatch.shards[2:])


def test_all_of_a_lost_lease_reported_late_leaves_nothing_to_hand_out():
    dispatch = make(2)
    lost = begin(dispatch)
    dispatch.give_up(lost.id, "silent")
    assert [dispatch.done(shard) for shard in lost.shards] == [True, True]
    assert dispatch.hand_out(1.0) is None
    assert dispatch.finished


def test_a_lease_that_did_its_own_shards_is_not_needless():
    dispatch = make(4)
    own, waiting = begin(dispatch), dispatch.hand_out(0.0)
    for shard in dispatch.shards:
        dispatch.done(shard)
    # An earlier driver's worker did those of the lease that nobody has begun.
    assert dispatch.needless() == [waiting]
    dispatch.ended(own.id, 1.0)
    assert list(dispatch.out) == [waiting.id]


@pytest.mark.parametrize("error", ["disk full", None])
def test_a_shard_that_fails_too_often_ends_the_run(error):
    dispatch = make(2, attempts=3)
    dispatch.done(dispatch.shards[0])
    for _ in range(2):
        dispatch.ended(begin(dispatch).id, 1.0, error)
    said = f"{dispatch.shards[1].name} failed 3 times, the last time: {error or 'it ended without'}"
    lease = begin(dispatch)
    with pytest.raises(StageError, match=said):
        dispatch.ended(lease.id, 1.0, error)
    # Even then it is not lost.
    assert dispatch.hand_out(2.0).shards == (dispatch.shards[1],)


def test_errors_of_one_group_do_not_count_against_another():
    dispatch = make(4, attempts=2)
    first, second = begin(dispatch), begin(dispatch)
    dispatch.ended(first.id, 1.0, "once")
    dispatch.ended(second.id, 1.0, "once")
    assert finish(dispatch, begin(dispatch), 2.0) == [True, True]
    assert finish(dispatch, begin(dispatch), 2.0) == [True, True]


def test_losses_are_forgiven_more_often_than_errors_but_not_for_ever():
    dispatch = make(2, attempts=1, losses=4)
    for _ in range(3):
        dispatch.give_up(begin(dispatch).id, "no beat")
    lease = begin(dispatch)
    with pytest.raises(StageError, match="failed 4 times, the last time: no beat"):
        dispatch.give_up(lease.id, "no beat")
    assert dispatch.lost == 4


def test_what_an_earlier_driver_used_up_counts_neither_as_error_nor_as_loss():
    dispatch = make(2, attempts=1, losses=1)
    ids = set()
    for _ in range(20):
        lease = dispatch.hand_out(0.0)
        ids.add(lease.id)
        dispatch.used_up(lease.id)
    assert len(ids) == 20
    assert dispatch.lost == 0
    assert finish(dispatch, begin(dispatch), 1.0) == [True, True]


def make_slow(**rules):
    """Return a dispatch whose last lease is slow, and that lease; the median lease took 1 s."""
    dispatch = make(6, ahead=3, **rules)
    leases = [begin(dispatch) for _ in range(3)]
    finish(dispatch, leases[0], 1.0)
    finish(dispatch, leases[1], 1.0)
    return dispatch, leases[2]


def test_a_slow_lease_goes_out_a_second_time_and_whoever_is_first_counts():
    dispatch, slow = make_slow()
    dispatch.done(slow.shards[0])
    assert dispatch.hand_out(3.0) is None
    copy = dispatch.hand_out(3.1)
    assert copy.shards == slow.shards[1:]
    assert copy.id != slow.id
    assert slow.doubled
    assert dispatch.hand_out(3.1) is None
    dispatch.heard(copy.id, 3.2)
    assert dispatch.done(copy.shards[0])
    assert dispatch.needless() == [slow, copy]
    dispatch.ended(copy.id, 4.0)
    dispatch.ended(slow.id, 4.0)
    assert dispatch.finished
    assert not dispatch.out


def test_a_slow_lease_whose_copy_is_lost_gets_another_one():
    dispatch, slow = make_slow()
    copy = dispatch.hand_out(4.0)
    dispatch.give_up(copy.id, "silent")
    assert not slow.doubled
    another = dispatch.hand_out(5.0)
    assert another.shards == slow.shards
    assert len({slow.id, copy.id, another.id}) == 3


def test_a_lost_lease_with_a_copy_out_does_not_wait_a_third_time():
    dispatch, slow = make_slow()
    copy = dispatch.hand_out(4.0)
    dispatch.give_up(slow.id, "silent")
    assert dispatch.hand_out(4.0) is None
    dispatch.give_up(copy.id, "silent")
    assert dispatch.hand_out(4.0).shards == slow.shards


def test_a_slow_lease_that_is_done_does_not_hide_another():
    dispatch = make(6, ahead=3)
    leases = [begin(dispatch, float(i)) for i in range(3)]
    finish(dispatch, leases[1], 2.0)
    for shard in leases[0].shards:
        dispatch.done(shard)
    assert dispatch.hand_out(50.0).shards == leases[2].shards


def test_no_copies_where_nothing_is_slow_enough():
    dispatch, _ = make_slow(slow_times=inf)
    assert dispatch.hand_out(1e9) is None


def test_no_copies_before_any_lease_has_ended():
    dispatch = make(2)
    begin(dispatch)
    assert dispatch.hand_out(1e9) is None


def test_ids_are_those_of_the_driver_before_although_shards_are_done_now():
    before = make(6, ahead=3)
    leases = [before.hand_out(0.0) for _ in range(3)]
    after = make(6, ahead=3)
    after.done(leases[0].shards[0])
    for shard in leases[1].shards:
        after.done(shard)
    first, last = after.hand_out(0.0), after.hand_out(0.0)
    assert (first.id, last.id) == (leases[0].id, leases[2].id)
    assert first.shards == leases[0].shards[1:]
    assert after.hand_out(0.0) is None


def test_an_id_is_of_shards_and_attempt():
    shards = make_shards(2)
    assert lease_id(shards, 0) == "5824a2faaa4a81f4e31ef1c1"
    assert len({lease_id(shards, i) for i in range(3)} | {lease_id(shards[:1], 0)}) == 4


class Faults(RuleBasedStateMachine):
    """Workers do, die, stall and come late in any order, and drivers are started again."""

    @initialize(count=st.integers(1, 9), group=st.integers(1, 4), ahead=st.integers(1, 4))
    def start(self, count, group, ahead):
        # More failures than a run of the machine has: the limits have tests of their own.
        self.rules = Rules(group, ahead, 1000, 1000, silent_seconds=5.0, slow_times=2.0)
        self.shards = make_shards(count)
        self.disk = set()  # shards that some worker has written
        self.now = 0.0
        self.attempts = {}  # id -> its shards, of any driver
        self.restart()

    @rule()
    def restart(self):
        self.dispatch = Dispatch(self.shards, self.rules)
        self.news = Counter()
        self.ids = set()
        self.leases = []  # that this driver handed out, lost ones too
        for shard in self.shards:
            if shard in self.disk:
                self.report(shard)

    def report(self, shard):
        if self.dispatch.done(shard):
            self.news[shard] += 1

    @rule()
    def hand_out(self):
        lease = self.dispatch.hand_out(self.now)
        if lease is None:
            return
        assert lease.id not in self.ids
        assert set(lease.shards) <= set(self.shards) - self.disk
        assert lease.shards
        assert list(lease.shards) == [shard for shard in self.shards if shard in lease.shards]
        # The same id in another run of the driver means the same group.
        assert len(lease.shards) <= self.rules.group
        group = [i // self.rules.group for i, s in enumerate(self.shards) if s in lease.shards]
        assert self.attempts.setdefault(lease.id, group[0]) == group[0] == group[-1]
        self.ids.add(lease.id)
        self.leases.append(lease)

    @rule(seconds=st.sampled_from([0.0, 1.0, 3.0, 6.0]))
    def wait(self, seconds):
        self.now += seconds

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def heard(self, data):
        self.dispatch.heard(data.draw(st.sampled_from(self.leases)).id, self.now)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def write(self, data):
        shard = data.draw(st.sampled_from(data.draw(st.sampled_from(self.leases)).shards))
        self.disk.add(shard)
        self.report(shard)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), error=st.sampled_from([None, "it broke"]))
    def end(self, data, error):
        self.dispatch.ended(data.draw(st.sampled_from(self.leases)).id, self.now, error)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def find_used_up(self, data):
        self.dispatch.used_up(data.draw(st.sampled_from(self.leases)).id)

    @rule()
    def give_up_the_silent(self):
        lost = self.dispatch.overdue(self.now)
        expected = {
            lease.id
            for lease in self.dispatch.out.values()
            if lease.begun is not None and self.now - lease.heard > 5.0
        }
        assert {lease.id for lease in lost} == expected
        for lease in lost:
            self.dispatch.give_up(lease.id, "silent")

    @rule()
    def end_the_needless(self):
        for lease in self.dispatch.needless():
            assert all(shard in self.disk for shard in lease.shards)
            self.dispatch.ended(lease.id, self.now)

    @invariant()
    def nothing_is_lost_and_nothing_comes_twice(self):
        if not hasattr(self, "dispatch"):
            return
        assert set(self.news) == self.disk
        assert all(count == 1 for count in self.news.values())
        assert self.dispatch.missing == len(self.shards) - len(self.disk)
        assert self.dispatch.finished == (len(self.disk) == len(self.shards))
        assert len(self.dispatch.out) <= self.rules.ahead

    def teardown(self):
        """Finish the run: whatever is out ends or is lost, and one good worker does the rest."""
        if not hasattr(self, "dispatch"):
            return
        for number, lease in enumerate(list(self.dispatch.out.values())):
            if number % 2:
                self.dispatch.give_up(lease.id, "everybody died")
            else:
                self.dispatch.ended(lease.id, self.now, "everybody died")
        for _ in self.shards:
            lease = self.dispatch.hand_out(self.now)
            if lease is None:
                break
            for shard in lease.shards:
                assert self.dispatch.done(shard)
            self.dispatch.ended(lease.id, self.now)
        assert self.dispatch.finished
        assert self.dispatch.hand_out(self.now) is None
        assert not self.dispatch.out


TestFaults = Faults.TestCase
TestFaults.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, database=None, derandomize=True
)
