"""Whatever is said arrives whole and in order, and the last words of one who is gone arrive too."""

from __future__ import annotations

from urelay.services.channel import Channel, Order, Word


def test_messages_arrive_in_order_with_what_comes_with_them() -> None:
    left, right = Channel.pair()
    left.send(Order.GO)
    left.send(Order.FINISH, 60.0)
    assert right.receive() == [("go", None), ("finish", 60.0)]
    right.send(Word.CLOSED, {"accepted": 3})
    assert left.receive() == [("closed", {"accepted": 3})]
    assert left.receive() == []
    assert not left.gone
    left.close()
    right.close()


def test_one_who_is_gone_is_heard_to_the_end_and_then_known_to_be_gone() -> None:
    left, right = Channel.pair()
    left.send(Order.REPORT)
    right.send(Word.REPORT, {"accepted": 7})
    # With an order unread, as when a worker is killed.
    right.close()
    left.send(Order.GO)
    assert left.receive() == [("report", {"accepted": 7})]
    assert left.gone
    left.close()


def test_one_who_never_listens_is_not_waited_for() -> None:
    left, right = Channel.pair()
    for _ in range(10_000):
        left.send(Order.REPORT)
    said = right.receive()
    assert 10 < len(said) < 10_000
    assert set(said) == {("report", None)}
    left.close()
    right.close()
