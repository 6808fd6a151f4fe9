"""Starting over: a new slot, emptied topics, and a re-snapshot of every table."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from infra.kafka.topics import end_offsets
from infra.state.history import read_history
from infra.state.positions import record_key
from producers.publish.kafka_transaction import Relay
from producers.session.start_over import start_over
from producers.source import slots
from schemas.errors import Refused
from schemas.topics import positions_topic
from tests.producers.folding import states
from tests.producers.processes import producing, write_settings
from tests.producers.sources import Source, copy_all, running, topic_of

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]
TABLE = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)"


def test_start_over_resets_the_source_and_re_snapshots_all_tables(new_source: NewSource) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    start_over(source.settings, "main")
    assert slots.read(source.connection, source.slot) is None
    assert source.recorded().stream is None
    assert source.recorded().snapshots["public.t"].from_scratch
    source.connection.execute("DELETE FROM t WHERE id = 1")
    copy_all(source)
    # The same topic, emptied in both partitions.
    assert states(source.require_equal("public.t")) == {"r": 3, "t": 2}


def test_topics_are_deleted_if_positions_would_go_back(new_source: NewSource) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    stream = source.recorded().stream
    assert stream is not None
    relay = Relay(source.settings.kafka, "test", positions_topic(source.settings.prefix))
    relay.record([(record_key("main"), stream.model_copy(update={"system_identifier": "1"}))])
    relay.commit()
    relay.close()
    start_over(source.settings, "main")
    assert end_offsets(source.settings.kafka, topic_of(source.settings, "public.t")) == {}
    copy_all(source)
    assert states(source.require_equal("public.t")) == {"r": 2}


def test_state_behind_the_transaction_of_a_killed_producer_is_seen(new_source: NewSource) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    stream = source.recorded().stream
    assert stream is not None
    positions = positions_topic(source.settings.prefix)
    killed = Relay(source.settings.kafka, f"{source.settings.prefix}.main", positions)
    killed.record([(record_key("main"), stream)])
    killed._producer.flush()
    with closing(Relay(source.settings.kafka, "test", positions)) as relay:
        relay.record([(record_key("main"), stream.model_copy(update={"system_identifier": "1"}))])
        relay.commit()
    start_over(source.settings, "main")
    killed.close()
    assert end_offsets(source.settings.kafka, topic_of(source.settings, "public.t")) == {}


def test_start_over_is_idempotent(new_source: NewSource) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    start_over(source.settings, "main")
    start_over(source.settings, "main")
    copy_all(source)
    assert states(source.require_equal("public.t")) == {"r": 4, "t": 2}


def test_start_over_interrupted_after_the_slot_is_completed_by_a_rerun(new_source: NewSource) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    source.drop_slot()
    start_over(source.settings, "main")
    copy_all(source)
    assert states(source.require_equal("public.t")) == {"r": 4, "t": 2}


def test_running_producer_is_not_affected(new_source: NewSource) -> None:
    source = new_source(TABLE, "public.t")
    with running(source) as producer:
        producer.caught_up()
        with pytest.raises(Refused, match=f"slot {source.slot} is being read; stop its producer first"):
            start_over(source.settings, "main")
        assert read_history(source.connection) == [], "refused"
        source.connection.execute("INSERT INTO t VALUES (3)")
        producer.caught_up()
    assert states(source.require_equal("public.t")) == {"r": 2, "c": 1}


@pytest.mark.long
def test_start_over_by_the_command(new_source: NewSource, tmp_path: Path) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    source.drop_slot()
    config = write_settings(source.settings, tmp_path / "headrace.toml")
    with producing(config) as process:
        assert process.ended() == 3
        assert "re-snapshot all tables with `headrace produce main --start-over`" in process.log.read_text()
    with producing(config, "--start-over", "--yes", "--reason", "CHG-7") as process:
        source.caught_up(process.check)
        process.send(signal.SIGTERM)
        assert process.ended() == 0
    assert states(source.require_equal("public.t")) == {"r": 4, "t": 2}
    (recorded,) = read_history(source.connection)
    assert (recorded.action, recorded.subject, recorded.reason) == ("start over", "main", "CHG-7")
