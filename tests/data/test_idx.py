"""IDX files, written here byte by byte."""

import gzip
import struct

import numpy as np
import pytest

import latentzoo
from latentzoo import zoo
from latentzoo.__main__ import main
from latentzoo.inference.base.errors import DataError
from latentzoo.inference.data.adapt import adapt
from latentzoo.inference.data.streams import Rows

pytestmark = pytest.mark.filterwarnings("ignore::latentzoo.inference.base.errors.ConvergenceWarning")

SHORT = {"num_steps": 5, "tol": 0, "hidden": (4,), "likelihood": "gaussian", "covariance": "fixed"}

# two images of 2 x 3 pixels, and their labels, as http://yann.lecun.com/exdb/mnist describes such files
IMAGES = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3, 0, 1, 2, 3, 4, 255, 9, 8, 7, 6, 5, 128])
LABELS = bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 3])
PIXELS = ["pixel_0_0", "pixel_0_1", "pixel_0_2", "pixel_1_0", "pixel_1_1", "pixel_1_2"]


def written(folder, content, name="train-images-idx3-ubyte"):
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images.idx3-ubyte.gz", "images.idx", "anything"])
def test_images_come_as_a_table_of_named_pixels(name, tmp_path):
    table = latentzoo.read_idx(written(tmp_path, IMAGES, name))
    assert list(table.columns) == PIXELS
    assert table.to_numpy().tolist() == [[0, 1, 2, 3, 4, 255], [9, 8, 7, 6, 5, 128]]
    assert table.dtypes.iloc[0] == np.uint8


def test_labels_come_as_a_column_and_a_packed_file_is_known_by_its_content(tmp_path):
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(gzip.compress(LABELS))
    assert latentzoo.read_idx(str(path))["label"].tolist() == [7, 3]


@pytest.mark.parametrize(
    ("code", "form", "values"),
    [
        (0x09, "b", [-1, 127]),
        (0x0B, "h", [-300, 300]),
        (0x0C, "i", [-70000, 70000]),
        (0x0D, "f", [0.5, -2.25]),
        (0x0E, "d", [1e-300, 3.5]),
    ],
)
def test_every_type_of_number_is_read_in_big_endian_order(code, form, values, tmp_path):
    content = bytes([0, 0, code, 2]) + struct.pack(">II", 2, 1) + struct.pack(f">2{form}", *values)
    path = written(tmp_path, content, "x-idx2-numbers")
    table = latentzoo.read_idx(path)
    assert list(table.columns) == ["value_0"]
    assert table["value_0"].tolist() == values
    np.testing.assert_array_equal(adapt(path).values.flatten(), values)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends after 0 bytes"),
        (b"\0\0\x08", "ends after 3 bytes, expected an IDX file"),
        (b"\x89PNG....", "begins with 89 50 4e 47, expected the magic number of an IDX file: 00 00, one of 08, 09, 0b"),
        (b"\0\0\x07\x01\0\0\0\x01\0", "begins with 00 00 07 01"),
        (b"\0\0\x08\0\0", "begins with 00 00 08 00"),
        (IMAGES[:10], "ends among its sizes: met 6 bytes of them, expected 12"),
        (IMAGES[:-1], "is cut off: met 11, expected 12 bytes for 2 x 2 x 3 numbers"),
        (IMAGES + b"\0", "goes on after its numbers: met more than that, expected 12 bytes for 2 x 2 x 3 numbers"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"\0" * 9, "is cut off: met 9, expected 79228162458924105385300197375 bytes"),
        (b"\0\0\x08\x02\0\0\0\0\0\0\0\x05", r"holds an array of shape \(0, 5\), expected at least one row"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_file_is_refused_in_plain_words(content, words, packed, tmp_path):
    path = written(tmp_path, content, "x-idx3-ubyte.gz" if packed else "x-idx3-ubyte")
    with pytest.raises(DataError, match=words):
        latentzoo.read_idx(path)
    with pytest.raises(DataError, match=words):
        zoo.fit("vae", path)


def test_a_file_that_cannot_be_unpacked_or_is_not_there(tmp_path):
    path = tmp_path / "x-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(IMAGES)[:-10])
    with pytest.raises(DataError, match="cannot read"):
        latentzoo.read_idx(path)
    with pytest.raises(DataError, match=r"no file '.*nowhere-idx3-ubyte'"):
        latentzoo.read_idx(tmp_path / "nowhere-idx3-ubyte")
    with pytest.raises(DataError, match="no file"):
        zoo.fit("vae", str(tmp_path / "nowhere-idx3-ubyte"))


def many(folder, packed):
    ink = np.random.default_rng(0).integers(0, 256, (60, 2, 3), dtype=np.uint8)
    content = bytes([0, 0, 8, 3]) + struct.pack(">III", *ink.shape) + ink.tobytes()
    return written(folder, content, "train-images-idx3-ubyte" + ".gz" * packed), ink.reshape(60, 6)


@pytest.mark.parametrize("packed", [False, True])
def test_a_path_is_fitted_row_by_row_and_gives_back_tables(packed, tmp_path):
    path, ink = many(tmp_path, packed)
    fit = zoo.fit("vae", path, **SHORT)
    assert isinstance(fit.data.values, Rows)
    assert fit.data.schema.columns == tuple(PIXELS)
    table = latentzoo.read_idx(path)
    other = zoo.fit("vae", table, **SHORT)
    assert fit.history.tolist() == other.history.tolist()
    assert list(fit.reconstruct(path).columns) == PIXELS
    assert fit.embeddings(path).equals(other.embeddings(table))
    assert fit.embeddings(table).equals(other.embeddings(path))
    with pytest.raises(DataError, match="row 0, column 'pixel_0_0', holds"):
        zoo.fit("vae", path, hidden=(4,))  # of 0 and 1
    found = zoo.fit("gaussian_mixture", path, num_components=1)
    np.testing.assert_allclose(found.params["loc"][0], ink.mean(0))


def test_the_command_line_takes_idx_files(tmp_path, capsys):
    path, _ = many(tmp_path, False)
    made = ["--likelihood", "gaussian", "--covariance", "fixed", "--hidden", "4"]
    assert main(["fit", "vae", str(path), *made, "--num-steps", "5", "--tol", "0", "--out", str(tmp_path / "run")]) == 0
    assert main(["score", str(tmp_path / "run"), str(path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 60
    assert main(["fit", "gaussian_mixture", str(path), "--drop", "pixel_0_0", "--num-components", "1"]) == 0
    assert main(["fit", "vae", str(path), *made, "--device", "moon"]) == 2
    assert "device: met 'moon', which torch cannot use here" in capsys.readouterr().err
    (tmp_path / "bad-idx3-ubyte").write_bytes(IMAGES[:-1])
    assert main(["fit", "vae", str(tmp_path / "bad-idx3-ubyte")]) == 2
    assert "is cut off: met 11, expected 12 bytes" in capsys.readouterr().err
