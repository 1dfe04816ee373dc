"""What is written as a snapshot comes back bit for bit, and the newest that can be trusted is found."""

import hashlib
import json

import pytest
import torch

from runtime.snapshot import TENSOR_FILE, TREE_FILE, Packed, newest, read, snapshots, write
from runtime.tensorfile import DTYPES

CONFIG = json.dumps({"settings": {"memory": {"window_frames": 12}}, "weights": "abc"})


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def packed(chunk: int = 3) -> Packed:
    torch.manual_seed(chunk)
    pool = torch.randn(2, 3, 5)
    return Packed(
        {"chunk": chunk, "scores": [0.1, None, -1e-300], "prompt": "a “red” circle\u0000\n"},
        {"kv": pool, "view": pool[:, 1].t(), "one": torch.tensor(2.5, dtype=torch.float64)},
    )


def assert_same(got: Packed, want: Packed) -> None:
    assert got.tree == want.tree
    assert got.tensors.keys() == want.tensors.keys()
    for name, tensor in want.tensors.items():
        assert got.tensors[name].dtype == tensor.dtype
        assert got.tensors[name].shape == tensor.shape
        assert bits(got.tensors[name]) == bits(tensor), name


def test_what_was_written_is_read(tmp_path):
    path = write(tmp_path / "new" / "folder", packed(), CONFIG, "chunk-000003")
    assert path == tmp_path / "new" / "folder" / "chunk-000003"
    assert sorted(one.name for one in path.iterdir()) == [TREE_FILE, TENSOR_FILE]
    assert_same(read(path, CONFIG), packed())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3)], ids=str)
def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path, dtype, shape):
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.arange(255, 255 - count, -1).to(torch.uint8)  # NaN patterns among them
    tensor = (raw if dtype != torch.bool else raw % 2).view(dtype).reshape(shape)
    want = Packed({}, {"odd/name é": tensor, "": torch.ones(1)})
    assert_same(read(write(tmp_path, want, "", "a"), ""), want)


def test_numbers_that_are_not_finite_may_lie_in_tensors(tmp_path):
    tensor = torch.tensor([float("nan"), float("inf"), -0.0], dtype=torch.bfloat16)
    want = Packed({}, {"x": tensor})
    assert_same(read(write(tmp_path, want, "", "a"), ""), want)


def test_a_snapshot_of_no_tensors_is_one(tmp_path):
    assert_same(read(write(tmp_path, Packed({"a": 1}, {}), "", "a"), ""), Packed({"a": 1}, {}))


def test_equal_snapshots_are_equal_bytes(tmp_path):
    digests = set()
    for run in "ab":
        path = write(tmp_path / run, packed(), CONFIG, "chunk-000003")
        digests.add(tuple(hashlib.sha256(p.read_bytes()).digest() for p in sorted(path.iterdir())))
    assert len(digests) == 1


def test_the_newest_two_are_kept(tmp_path):
    for chunk in range(5):
        write(tmp_path, packed(chunk), CONFIG, f"chunk-{chunk:06d}")
    assert [path.name for path in snapshots(tmp_path)] == ["chunk-000004", "chunk-000003"]
    write(tmp_path, packed(), CONFIG, "chunk-1000000", keep=1)  # one digit more than was planned
    assert [path.name for path in snapshots(tmp_path)] == ["chunk-1000000"]


def test_a_name_that_is_taken_gets_the_new_content(tmp_path):
    for chunk in (1, 2):
        write(tmp_path, packed(chunk), CONFIG, "chunk-000001")
    assert_same(read(tmp_path / "chunk-000001", CONFIG), packed(2))
    assert [path.name for path in tmp_path.iterdir()] == ["chunk-000001"]


def test_the_newest_is_found(tmp_path):
    assert newest(tmp_path / "none", CONFIG) is None
    assert newest(tmp_path, CONFIG) is None
    for chunk in (8, 9, 10):
        write(tmp_path, packed(chunk), CONFIG, f"chunk-{chunk:06d}")
    found = newest(tmp_path, CONFIG)
    assert found is not None and found[0] == tmp_path / "chunk-000010"
    assert_same(found[1], packed(10))


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path):
    left = tmp_path / ".chunk-000007.tmp"
    left.mkdir(parents=True)
    (left / TENSOR_FILE).write_bytes(b"half")
    assert newest(tmp_path, CONFIG) is None
    write(tmp_path, packed(), CONFIG, "chunk-000007")
    assert [path.name for path in tmp_path.iterdir()] == ["chunk-000007"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", ".a", "a\0", "a" * 65, "é"])
def test_a_name_that_is_no_plain_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="snapshot name: want letters, digits, - and _, got"):
        write(tmp_path / "in", packed(), CONFIG, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("-inf"), {1, 2}, b"x", object()],
    ids=lambda value: type(value).__name__,
)
def test_a_tree_that_is_not_json_is_refused_and_nothing_is_left(tmp_path, value):
    with pytest.raises(ValueError, match="snapshot tree: want finite JSON types, got another"):
        write(tmp_path, Packed({"deep": [value]}, {}), CONFIG, "a")
    assert list(tmp_path.iterdir()) == []


def test_a_tree_without_an_end_is_refused(tmp_path):
    tree: dict = {}
    tree["self"] = tree
    with pytest.raises(ValueError, match="snapshot tree: want finite JSON types"):
        write(tmp_path, Packed(tree, {}), CONFIG, "a")


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ('{"settings": {"memory": {"window_frames": 21}}, "weights": "abc"}', "settings.memory.window_frames 12, now 21"),
        ('{"settings": {"memory": {"window_frames": 12}}, "weights": "def"}', "weights abc, now def"),
        ('{"settings": {"memory": {"window_frames": 12}}}', "weights abc, now None"),
        ('{"a": 1, "b": 2, "c": 3}', "a None, now 1; b None, now 2; c None, now 3 and 2 more"),
        ("anything", "another configuration"),
        (CONFIG + " ", "another configuration"),
        ("[" * 100_000, "another configuration"),
    ],
)  # fmt: skip
def test_what_was_made_otherwise_is_refused_with_the_difference(tmp_path, now, told):
    path = write(tmp_path, packed(), CONFIG, "a")
    with pytest.raises(ValueError) as refused:
        read(path, now)
    sentence = f"{path / TREE_FILE}: made with other settings or weights: {told}"
    assert str(refused.value) == sentence
