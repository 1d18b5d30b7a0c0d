"""The rules by which progress is read, from report files, stdout and TensorBoard event files."""

from __future__ import annotations

import json
import math
import os

import pytest

from tierline.backends.jobs.progress import LineMatcher, ReportFileReader, check_progress
from tierline.core.errors import InvalidInput
from tierline.core.nouns import Job, Metric, Progress

NOW = 10**18


def read(path, lines: bytes, metric: Metric | None = None, offset: int = 0, ended: bool = False):
    path.write_bytes(lines)
    reader = ReportFileReader(path, Job("j", metric=metric or Metric()), 1, offset)
    return reader, reader.poll(NOW, ended)


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ('{"step": 1, "loss": 0.5, "time_ns": 7}', (1, 0.5, 7)),
        ('{"step": 1.0, "loss": 1}', (1, 1.0, NOW)),
        ('{"step": 1, "loss": "nan", "time_ns": 7}', (1, None, 7)),
        ('{"step": 1, "loss": "-inf", "time_ns": 7}', (1, None, 7)),
        ('{"step": 1, "loss": NaN, "time_ns": 7}', (1, None, 7)),
        ('{"step": 1, "loss": 1e400, "time_ns": 7}', (1, None, 7)),
        ('{"step": 1, "loss": 1e9, "time_ns": 7}', (1, 1e9, 7)),
        ('{"step": 1, "loss": 0, "time_ns": 2000000000000000000}', (1, 0.0, NOW)),
        ('{"step": 1, "loss": 1' + "0" * 400 + ', "time_ns": 7}', (1, None, 7)),
    ],
)
def test_a_line_is_read(tmp_path, line, want):
    reader, reports = read(tmp_path / "r", line.encode() + b"\n")
    assert [(r.step, r.loss, r.time_ns) for r in reports] == [want]
    assert reader.skipped == 0


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[1, 2]",
        b'{"loss": 1}',
        b'{"step": -1, "loss": 1}',
        b'{"step": 1.5, "loss": 1}',
        b'{"step": true, "loss": 1}',
        b'{"step": 1e300, "loss": 1}',
        b'{"step": 1, "loss": "high"}',
        b'{"step": 1, "loss": [1]}',
        b'{"step": 1, "loss": null}',
        b"\xff\xfe\x00",
        b"[" * 5000,
        b'{"step": 1' + b"0" * 5000 + b', "loss": 1}',
        b'{"step": 1, "loss": 1, "x": "' + b"y" * 70_000 + b'"}',
    ],
)
def test_a_malformed_line_is_skipped_and_counted(tmp_path, line):
    reader, reports = read(tmp_path / "r", line + b'\n{"step": 2, "loss": 1}\n')
    assert [r.step for r in reports] == [2]
    assert reader.skipped == 1


def test_a_torn_last_line_waits_until_it_is_complete(tmp_path):
    path = tmp_path / "r"
    reader, reports = read(path, b'{"step": 1, "loss": 1}\n{"step": 2, "lo')
    assert [r.step for r in reports] == [1]
    assert reader.poll(NOW, False) == ()
    with path.open("ab") as file:
        file.write(b'ss": 3}\n')
    assert [(r.step, r.loss) for r in reader.poll(NOW, False)] == [(2, 3.0)]
    assert reader.skipped == 0


@pytest.mark.parametrize(
    ("rest", "steps", "skipped"), [(b'{"step": 2, "lo', [1], 1), (b'{"step": 2, "loss": 1}', [1, 2], 0)]
)
def test_when_the_attempt_has_ended_a_torn_line_is_decided(tmp_path, rest, steps, skipped):
    reader, first = read(tmp_path / "r", b'{"step": 1, "loss": 1}\n' + rest)
    reports = first + reader.poll(NOW, True)
    assert [r.step for r in reports] == steps
    assert reader.skipped == skipped
    assert reader.poll(NOW, True) == ()


def test_reading_resumes_at_an_offset(tmp_path):
    lines = b"".join(b'{"step": %d, "loss": 1}\n' % k for k in range(5))
    _, reports = read(tmp_path / "r", lines)
    _, rest = read(tmp_path / "r", lines, offset=reports[2].offset)
    assert [r.step for r in rest] == [3, 4]
    assert reports[-1].offset == len(lines)


def test_the_metric_is_read_by_its_name_and_loss_is_the_fallback_until_it_was_seen(tmp_path):
    lines = (
        b'{"step": 1, "loss": 9}\n{"step": 2, "loss": 9, "acc": 0.5}\n{"step": 3, "loss": 9}\n{"step": 4, "acc": 0.7}\n'
    )
    _, reports = read(tmp_path / "r", lines, Metric("acc", "max"))
    assert [(r.step, r.loss) for r in reports] == [(1, -9.0), (2, -0.5), (4, -0.7)]
    _, rest = read(tmp_path / "r", lines, Metric("acc", "max"), offset=reports[1].offset)
    assert [r.step for r in rest] == [4]


def test_a_line_without_end_does_not_stop_the_reading(tmp_path):
    path = tmp_path / "r"
    reader, _ = read(path, b"x" * 3_000_000)
    with path.open("ab") as file:
        file.write(b'\n{"step": 1, "loss": 1}\n')
    assert [r.step for r in reader.poll(NOW, False)] == [1]


def test_lines_on_stdout():
    regex = LineMatcher("regex", r"epoch (?P<step>\d+).*loss=(?P<loss>\S+)")
    assert regex.match(b"epoch 3 | loss=0.25 | 3 s") == {"step": 3, "loss": 0.25}
    assert regex.match(b"epoch 3 | loss=nan") == {"step": 3, "loss": "nan"}
    assert regex.match(b"epoch 3 | loss=high") is None
    assert regex.match(b"\xff") is None
    jsonl = LineMatcher("jsonl", "val")
    assert jsonl.match(b'{"step": 3, "val": 1.5, "loss": 2}') == {"step": 3, "loss": 1.5}
    assert jsonl.match(b'{"step": 3, "val": NaN}') == {"step": 3, "loss": "nan"}
    assert jsonl.match(b'{"step": 3}') is None
    assert jsonl.match(b"plain text") is None
    assert jsonl.match(b"[" * 100_000) is None


@pytest.mark.parametrize(
    ("kind", "pattern", "words"),
    [
        ("regex", "(", "no regular expression"),
        ("regex", "(" * 5000 + ")" * 5000, "no regular expression"),
        ("regex", "a{99999999999999999999}", "no regular expression"),
        ("regex", r"(?P<step>\d+)", r"\(\?P<loss>"),
        ("tensorboard", "folder", "FOLDER:TAG"),
    ],
)
def test_progress_that_can_never_be_read_is_refused(kind, pattern, words):
    with pytest.raises(InvalidInput, match=words):
        check_progress(Job("j", progress=Progress(kind, pattern)))


def test_progress_by_regex_and_jsonl_from_a_real_job(site):
    site.open()
    site.script(
        "regex",
        "print('start'); print('step 1 loss 0.5\\rstep 2 loss 0.25'); print('step 3 loss nan', end='')",
        progress=Progress("regex", r"step (?P<step>\d+) loss (?P<loss>\S+)"),
    )
    site.script("jsonl", 'print(\'{"step": 1, "acc": 0.5}\')', progress=Progress("jsonl"), metric=Metric("acc", "max"))
    site.script("bad", "pass", progress=Progress("regex", "("))
    for job_id in site.jobs:
        site.start(job_id)
        site.exited(job_id)
    assert [(r.step, r.loss) for r in site.reports("regex")] == [(1, 0.5), (2, 0.25), (3, None)]
    assert [(r.step, r.loss) for r in site.reports("jsonl")] == [(1, -0.5)]
    assert site.exited("bad").reason.startswith("cannot start: progress pattern '(' is no regular expression")


def tensorboard_writer(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))

    def write(step: int, tag: str, value: float) -> None:
        writer.add_event(
            Event(
                step=step, wall_time=100.0 + step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            )
        )
        writer.flush()

    write.close = writer.close
    return write


def test_tensorboard_files_are_read_on_and_from_an_offset(tmp_path):
    write = tensorboard_writer(tmp_path)
    from tierline.backends.jobs.tensorboard_progress import TensorBoardReader

    job = Job("j", metric=Metric("acc", "max"))
    reader = TensorBoardReader(tmp_path, "eval/acc", job, 1, 0)
    assert reader.poll(NOW, False) == ()
    write(1, "eval/acc", 0.5)
    write(1, "other", 7.0)
    write(2, "eval/acc", math.nan)
    first = reader.poll(NOW, False)
    assert [(r.step, r.loss, r.time_ns) for r in first] == [(1, -0.5, 101 * 10**9), (2, None, 102 * 10**9)]
    write(3, "eval/acc", 0.75)
    write.close()
    assert [(r.step, r.loss) for r in reader.poll(NOW, True)] == [(3, -0.75)]
    again = TensorBoardReader(tmp_path, "eval/acc", job, 1, first[0].offset)
    assert [r.step for r in again.poll(NOW, True)] == [2, 3]
    fresh = TensorBoardReader(tmp_path, "eval/acc", job, 2, 0)
    assert fresh.skip_to_end() == 3
    assert fresh.poll(NOW, True) == ()


def test_a_damaged_tensorboard_file_costs_its_own_values_alone(tmp_path):
    write = tensorboard_writer(tmp_path)
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    from tierline.backends.jobs.tensorboard_progress import TensorBoardReader

    with open(tmp_path / "0.tfevents.damaged", "wb") as file:
        RecordWriter(file).write(b"\xff" * len(Event().SerializeToString()) + b"no event")
    (tmp_path / "1.tfevents.folder").mkdir()
    os.mkfifo(tmp_path / "2.tfevents.pipe")
    (tmp_path / "3.tfevents.gone").symlink_to(tmp_path / "nowhere")
    write(1, "loss", 0.5)
    write.close()
    reader = TensorBoardReader(tmp_path, "loss", Job("j"), 1, 0)
    assert [r.step for r in reader.poll(NOW, False)] == [1]
    assert reader.poll(NOW, True) == ()
    assert reader.skipped == 1


def test_tensorboard_progress_of_a_job_in_its_checkpoint_folder(site):
    folder = site.folder("a") / "checkpoints" / "tb"
    site.open()
    site.script(
        "a", "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)",
        progress=Progress("tensorboard", "$TIERLINE_CHECKPOINT_DIR/tb:loss"),
    )  # fmt: skip
    site.start("a")
    site.started("a")
    write = tensorboard_writer(folder)
    write(1, "loss", 0.5)
    write.close()
    site.eventually(lambda: [r.step for r in site.reports("a")] == [1], "the report")
    (site.folder("a") / "go").touch()
    assert site.exited("a").outcome == "completed"
    assert len(site.reports("a")) == 1


def test_report_lines_of_the_library_and_of_other_languages_are_the_same_format(tmp_path, monkeypatch):
    import tierline

    path = tmp_path / "r"
    monkeypatch.setenv("TIERLINE_REPORT_FILE", str(path))
    tierline.report(3, loss=0.5)
    record = json.loads(path.read_text())
    assert set(record) == {"step", "loss", "time_ns"}
