"""Profiles as CSV: ours, Orion's, Nsight Compute's, and one clear sentence for what is wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.core.errors import InvalidInput, NotFound
from tierline.kernels.foreign_profiles import BOUND, OTHER, bound_class, import_profiles, parse_ncu, parse_orion
from tierline.kernels.profile import COLUMNS, KernelProfile, format_profiles, merged, parse_profiles, read_profiles

GEMM = KernelProfile(
    "sm90_gemm<128, 128>", 512_000, key=0xDEADBEEF, grid=(16, 8, 1), block=(256, 1, 1), registers=168,
    smem_static_bytes=1024, smem_dynamic_bytes=65536, occupancy=2, waves=0.48, sm_blocks=64, sm_util=0.83, bw_util=0.21,
    bytes=1.5e8, flops=2.2e11, samples=3, source="ncu",
)  # fmt: skip

_positive = st.integers(1, 2**31 - 1)
_profiles = st.builds(
    KernelProfile,
    name=st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1),
    duration_ns=st.integers(0, 2**53),
    key=st.integers(0, 2**64 - 1),
    grid=st.tuples(_positive, _positive, _positive),
    block=st.tuples(_positive, _positive, _positive),
    registers=st.integers(0, 255),
    occupancy=st.integers(0, 32),
    waves=st.floats(0, 1e6),
    sm_util=st.floats(0, 1),
    bw_util=st.floats(0, 1),
    flops=st.floats(0, 1e18),
    source=st.sampled_from(("ncu", "event", "roofline", "default", "orion")),
)


@given(st.lists(_profiles, max_size=4))
def test_what_is_written_is_read_again(rows: list[KernelProfile]) -> None:
    assert parse_profiles(format_profiles(rows), "x") == rows


def test_columns_may_be_missing_empty_and_in_any_order() -> None:
    text = "duration_ns,name,grid,sm_util\n1000,copy,32,\n\n2000,norm,4x2,0.5\n"
    copy, norm = parse_profiles(text, "x")
    assert (copy.name, copy.duration_ns, copy.grid, copy.sm_util, copy.key) == ("copy", 1000, (32, 1, 1), 0.0, 0)
    assert (norm.grid, norm.sm_util, norm.source) == ((4, 2, 1), 0.5, "default")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "x is empty"),
        ("name,duration\n", "x, line 1: unknown column 'duration'; allowed are key, name, duration_ns"),
        ("name,sm_util\n", "x, line 1: the column 'duration_ns' is missing"),
        ("name,name,duration_ns\n", "x, line 1: the column 'name' stands there twice"),
        ("name,duration_ns\na,1\nb\n", "x, line 3: 1 values for 2 columns"),
        ("name,duration_ns\n,5\n", "x, line 2: 'name' is empty"),
        ("name,duration_ns\na,\n", "x, line 2: 'duration_ns' is empty"),
        ('name,duration_ns\n"a\nb",5\n', "but a name without control characters is needed"),
        ("name,duration_ns\na,-5\n", "x, line 2: duration_ns = '-5', but a whole number of 0 or more is needed"),
        ("name,duration_ns\na,nan\n", "duration_ns = 'nan'"),
        ("name,duration_ns,sm_util\na,5,83\n", "x, line 2: sm_util = '83', but a share from 0 to 1 is needed"),
        ("name,duration_ns,sm_util\na,5,nan\n", "sm_util = 'nan'"),
        ("name,duration_ns,flops\na,5,inf\n", "flops = 'inf'"),
        ("name,duration_ns,grid\na,5,0x4\n", "grid = '0x4', but a size as in 128x1x1 is needed"),
        ("name,duration_ns,grid\na,5,1x1x1x1\n", "grid = '1x1x1x1'"),
        ("name,duration_ns,key\na,5,xyz\n", "key = 'xyz', but a key of up to 16 hexadecimal digits"),
        ("name,duration_ns,key\na,5,11112222333344445\n", "key = '1111"),
        ("name,duration_ns,source\na,5,guess\n", "source = 'guess', but one of ncu, event, roofline, default, orion"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_its_line(text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_profiles(text, "x")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    with pytest.raises(NotFound, match=r"no profile file .*p\.csv"):
        read_profiles(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_profiles(path)
    path.write_text(format_profiles([GEMM]))
    assert import_profiles(path) == read_profiles(path) == [GEMM]
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)


ORION = """Name,Profile,Memory_footprint,SM_usage,Duration
Conv,1,0,98,100480
BN,0,0,40,20000
Conv,1,0,40,50480
Cat,-1,0,3,7
"""


def test_orion_is_keyed_by_name_so_its_order_does_not_matter() -> None:
    conv, bn, cat = parse_orion(ORION, "x")
    assert (conv.name, conv.duration_ns, conv.sm_blocks, conv.samples) == ("Conv", 75_480, 98, 2)
    assert (conv.sm_util, conv.bw_util, conv.source) == (BOUND, OTHER, "orion")
    assert (bn.sm_util, bn.bw_util) == (OTHER, BOUND)
    assert (bound_class(conv), bound_class(bn), bound_class(cat)) == ("compute", "memory", "unknown")
    head, *lines = ORION.splitlines()
    shuffled = parse_orion("\n".join([head, *reversed(lines)]), "x")
    assert {row.name: row for row in shuffled} == {row.name: row for row in (conv, bn, cat)}
    assert conv.sm_util + bn.sm_util < 0.95 < 2 * conv.sm_util  # classes that differ may meet, the same may not


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "Name,Profile,SM_usage,Duration\n",
            "x, line 1: an Orion profile has the columns Name,Profile,Memory_footprint",
        ),
        ("Name,Profile,Memory_footprint,SM_usage,Duration\nConv,2,0,9,9\n", "x, line 2: Profile = '2'"),
        ("Name,Profile,Memory_footprint,SM_usage,Duration\nConv,1,0,9,soon\n", "x, line 2: Duration = 'soon'"),
        ("Name,Profile,Memory_footprint,SM_usage,Duration\n,1,0,9,9\n", "x, line 2: 'Name' is empty"),
    ],
)
def test_what_is_wrong_in_orions_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_orion(text, "x")
    assert said in str(caught.value)


NCU = """==PROF== Connected to process 12 (python)
==PROF== Profiling "gemm" - 0: 0%....100% - 9 passes
"ID","Kernel Name","Stream","Block Size","Grid Size","gpu__time_duration.sum",\
"sm__throughput.avg.pct_of_peak_sustained_elapsed",\
"dram__throughput.avg.pct_of_peak_sustained_elapsed","dram__bytes.sum","launch__registers_per_thread",\
"launch__shared_mem_per_block_static","launch__shared_mem_per_block_dynamic","launch__occupancy_limit_blocks",\
"launch__occupancy_limit_registers","launch__occupancy_limit_shared_mem","launch__occupancy_limit_warps",\
"launch__waves_per_multiprocessor"
"","","","","","us","%","%","Mbyte","register/thread","byte/block","Kbyte/block","block","block","block","block",""
"0","_Z4gemmv","7","(256, 1, 1)","(1,024, 1, 1)","1,512.5","83.2","21","150","168","512","65.536","32","2","3","8","3.9"
"1","_Z4gemmv","7","(256, 1, 1)","(1024, 1, 1)","1487.5","83.2","21","150","168","512","65.536","32","2","3","8","3.9"
"2","_Z4copyv","7","(64, 1, 1)","(8, 1, 1)","3","n/a","99.9","1","16","0","0","32","32","32","8","0.1"
"""


def test_nsight_compute_with_its_units_and_repeated_launches() -> None:
    gemm, copy = parse_ncu(NCU.replace("(1,024, 1, 1)", "(1024, 1, 1)"), "x")
    assert (gemm.name, gemm.grid, gemm.block) == ("_Z4gemmv", (1024, 1, 1), (256, 1, 1))
    assert (gemm.duration_ns, gemm.samples, gemm.occupancy, gemm.registers) == (1_500_000, 2, 2, 168)
    assert (gemm.sm_util, gemm.bw_util) == pytest.approx((0.832, 0.21))
    assert (gemm.bytes, gemm.smem_static_bytes, gemm.smem_dynamic_bytes) == (150e6, 512, 65_536)
    assert (copy.sm_util, copy.bw_util, copy.duration_ns) == (0.0, pytest.approx(0.999), 3000)
    assert gemm.source == copy.source == "ncu"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("gpu__time_duration.sum", "gpu__time"),
            "x, line 3: the column 'gpu__time_duration.sum' is missing; run ncu with",
        ),
        (('"us"', '"cycle"'), "x, line 5: the unit 'cycle' of gpu__time_duration.sum is not known"),
        (('"83.2"', '"much"'), "x, line 5: sm__throughput.avg.pct_of_peak_sustained_elapsed = 'much'"),
        (("(256, 1, 1)", "256"), "x, line 5: '256' are no dimensions"),
    ],
)
def test_what_is_wrong_in_nsights_file(change: tuple[str, str], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_ncu(NCU.replace("(1,024, 1, 1)", "(1024, 1, 1)").replace(*change), "x")
    assert said in str(caught.value)


def test_the_header_tells_whose_file_it_is(tmp_path: Path) -> None:
    for text, source in ((ORION, "orion"), (NCU.replace("1,024", "1024"), "ncu"), (format_profiles([GEMM]), "ncu")):
        (tmp_path / "f.csv").write_text(text)
        assert import_profiles(tmp_path / "f.csv")[0].source == source


def test_merging_weighs_by_samples() -> None:
    (one,) = merged([KernelProfile("a", 100, samples=3, sm_util=0.2), KernelProfile("a", 200, samples=1, sm_util=0.6)])
    assert (one.duration_ns, one.samples, one.sm_util) == (125, 4, pytest.approx(0.3))
    assert len(merged([KernelProfile("a", 1, grid=(1, 1, 1)), KernelProfile("a", 1, grid=(2, 1, 1))])) == 2
