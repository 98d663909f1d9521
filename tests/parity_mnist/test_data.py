"""IDX files, written and read, whole and damaged; and the images that the package brings."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.parity_mnist.support import few, write_images
from vla_razor.errors import UserError
from vla_razor.parity_mnist import data

IMAGES, LABELS = 0x0803, 0x0801
bytes_of_any_shape = st.sampled_from([1, 3]).flatmap(
    lambda axes: arrays(np.uint8, st.tuples(*[st.integers(0, 5)] * axes))
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(array=bytes_of_any_shape)
def test_what_is_written_is_read_gzipped_or_not(tmp_path: Path, array: np.ndarray) -> None:
    packed, plain = tmp_path / "images.gz", tmp_path / "images"
    data.write_idx(packed, array)
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    for path in (packed, plain):
        found = data.read_idx(path, 0x0800 | array.ndim)
        assert found.dtype == np.uint8
        assert found.shape == array.shape
        assert (found == array).all()


def test_the_format_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 0, 9]))
    assert data.read_idx(path, LABELS).tolist() == [7, 0, 9]
    array = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    data.write_idx(tmp_path / "a.gz", array)
    expected = bytes([0, 0, 8, 3]) + struct.pack(">3I", 1, 2, 3) + bytes(range(6))
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == expected
    data.write_idx(tmp_path / "b.gz", array)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes(), "the same array gives the same bytes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path, few((4, 4), (4, 4)))


def test_a_folder_holds_what_was_put_into_it(folder: Path) -> None:
    for found, expected in zip(data.load(folder), few((4, 4), (4, 4)), strict=True):
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.labels, expected.labels)
        assert (found.images.dtype, found.labels.dtype) == (torch.float32, torch.int64)
        assert (found.images.min(), found.images.max()) == (0, 1)


def unpacked(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """The file with its content changed, and packed again."""
    return lambda path: path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


TRAIN, TEST, CLOTHES = "MNIST/raw/train-images-idx3", "MNIST/raw/t10k-labels-idx1", "FashionMNIST/raw/t10k-images-idx3"
DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": (CLOTHES, Path.unlink, "{path} is missing"),
    "empty": (TRAIN, lambda path: path.write_bytes(b""), "{path}: magic number None"),
    "another file's magic number": (TEST, unpacked(lambda b: b[:3] + b"\3" + b[4:]), "{path}: magic number 2051"),
    "cut in the magic number": (TRAIN, unpacked(lambda b: b[:3]), "{path}: magic number None"),
    "cut in the header": (TRAIN, unpacked(lambda b: b[:11]), "{path} is truncated"),
    "cut in the body": (TRAIN, unpacked(lambda b: b[:-1]), "{path} is damaged: 3135 bytes follow the header"),
    "too long": (TEST, unpacked(lambda b: b + b"\0"), "{path} is damaged: 5 bytes follow the header; expected 4"),
    "not gzip": (TRAIN, lambda path: path.write_bytes(b"<html>not here</html>"), "{path} cannot be read"),
    "cut gzip": (TRAIN, lambda path: path.write_bytes(path.read_bytes()[:-20]), "{path} cannot be read"),
    "damaged gzip": (TRAIN, lambda path: path.write_bytes(path.read_bytes()[:30] + bytes(400)), "{path} cannot be"),
    "a label out of range": (TEST, unpacked(lambda b: b[:-1] + b"\n"), "{path}: label 10 is out of range"),
    "fewer labels": (
        TEST,
        unpacked(lambda b: b[:7] + b"\3" + b[8:-1]),
        "{raw}: 4 t10k images but 3 labels",
    ),
    "another size": (
        CLOTHES,
        unpacked(lambda b: b[:8] + struct.pack(">2I", 14, 56) + b[16:]),
        "{raw}: the t10k images are (14, 56) pixels",
    ),
}


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named(folder: Path, name: str, damage: Callable[[Path], object], message: str) -> None:
    path = folder / f"{name}-ubyte.gz"
    damage(path)
    with pytest.raises(UserError) as error:
        data.load(folder)
    assert message.format(path=path, raw=path.parent) in str(error.value)


def test_files_that_are_not_packed_will_do(folder: Path) -> None:
    expected = data.load(folder)
    for path in folder.rglob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert all(
        torch.equal(a, b)
        for one, other in zip(data.load(folder), expected, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_the_package_brings_real_images_of_every_class() -> None:
    found = data.load()
    assert [len(split.labels) for split in found] == [5000, 2000, 500, 2000]
    for split in found:
        assert split.images.shape == (len(split.labels), 784)
        assert split.labels.bincount(minlength=10).min() > 0.05 * len(split.labels)
    assert sum(path.stat().st_size for path in data.BUNDLED.rglob("*") if path.is_file()) < 3e6


def test_no_test_image_of_the_package_is_trained_on() -> None:
    found = data.load()
    for train, test in ((found.mnist_train, found.mnist_test), (found.fashion_train, found.fashion_test)):
        seen = {image.tobytes() for image in train.images.numpy()}
        assert not any(image.tobytes() in seen for image in test.images.numpy())


def test_the_packages_images_are_the_published_ones(shared: Path) -> None:
    """The digits come from MNIST's first training images, in another order; the clothes are FashionMNIST's first."""
    folder = shared / "data"
    if not (folder / "MNIST").is_dir():
        pytest.skip("the published images are absent")
    found, raw = data.load(), folder / "FashionMNIST" / "raw"
    published = data.read_split(folder / "MNIST" / "raw", "train")
    digits = {
        image.tobytes(): int(n) for image, n in zip(published.images[:12000].numpy(), published.labels, strict=False)
    }
    for split in (found.mnist_train, found.mnist_test):
        assert [digits.get(image.tobytes()) for image in split.images.numpy()] == split.labels.tolist()
    for split, part in ((found.fashion_train, "train"), (found.fashion_test, "t10k")):
        clothes = data.read_split(raw, part)
        assert torch.equal(split.images, clothes.images[: len(split.images)])
        assert torch.equal(split.labels, clothes.labels[: len(split.labels)])
