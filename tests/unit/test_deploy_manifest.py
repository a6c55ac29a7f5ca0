"""manifest.json: what is written comes back, and what is not as written is refused by name."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ddscale.deploy import manifest as m

EEG = m.TensorInfo("eeg", "float32", ("batch", 8, 64))
TOKENS = m.TensorInfo("tokens", "float32", ("batch", 16, 24))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "eeg_encoder.onnx").write_bytes(b"a graph")
    (tmp_path / "eeg_encoder.onnx.data").write_bytes(b"its weights")
    (tmp_path / "golden.npz").write_bytes(b"numbers")
    (tmp_path / "weight_names.json").write_bytes(b"{}")
    (tmp_path / "schedules").mkdir()
    (tmp_path / "schedules" / "ddim-4.npz").write_bytes(b"a table")
    files = {
        path.relative_to(tmp_path).as_posix(): m.FileInfo(m.sha256_of(path), path.stat().st_size)
        for path in sorted(tmp_path.rglob("*"))
        if path.is_file()
    }
    graph = m.GraphInfo(
        "eeg_encoder.onnx",
        "eeg_encoder.onnx.data",
        m.sha256_of(tmp_path / "eeg_encoder.onnx", tmp_path / "eeg_encoder.onnx.data"),
        (EEG,),
        (TOKENS,),
        20,
        "fp32",
        12,
        3.5,
    )
    m.Manifest(
        kind="encoder",
        precision="fp32",
        created="2026-01-01T00:00:00+00:00",
        graphs={m.ENCODER: graph},
        files=files,
        sfreq=256.0,
        channels=8,
        samples=64,
        preprocessing={"h_freq": 100.0, "notch": None},
        normalisation={"kind": "zscore"},
        latent=None,
        vae_scale=None,
        prediction_type=None,
        constants=None,
        schedules=(m.ScheduleInfo("ddim", 4, "schedules/ddim-4.npz", 1e-7),),
        profiles=(m.Profile("default", 1, 2, 4),),
        golden=m.GoldenInfo("golden.npz", {m.ENCODER: 1e-4}, None),
        parity=(m.ParityCheck("tokens", m.ENCODER, 1e-7, 1e-5),),
        versions={"torch": "2"},
        source=m.SourceInfo("run/encoder", "00"),
        weight_names="weight_names.json",
    ).save(tmp_path)
    return tmp_path


def _edit(folder, change):
    path = folder / m.FILE_NAME
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_what_is_saved_is_loaded(folder):
    manifest = m.Manifest.load(folder)
    manifest.check_files(folder)
    assert manifest.graph(m.ENCODER).inputs == (EEG,)
    assert manifest.preprocessing == {"h_freq": 100.0, "notch": None}
    manifest.save(folder)
    assert m.Manifest.load(folder) == manifest


@pytest.mark.parametrize(("version", "remedy"), [(2, "update ddscale"), (0, "export again")])
def test_another_schema_version_is_refused_naming_both(folder, version, remedy):
    _edit(folder, lambda tree: tree.update(schema_version=version, something_new=1))
    with pytest.raises(m.ManifestError, match=f"version {version}, .* reads version 1: {remedy}"):
        m.Manifest.load(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tree: tree.pop("sfreq"), "sfreq"),
        (lambda tree: tree.update(surprise=1), "surprise"),
        (lambda tree: tree.update(channels="8"), r"manifest\.channels"),
        (lambda tree: tree.update(precision="fp12"), "fp12"),
        (lambda tree: tree["graphs"]["eeg_encoder"].update(opset=None), r"eeg_encoder\.opset"),
        (lambda tree: tree["golden"].update(tolerances=[1]), r"golden\.tolerances"),
        (lambda tree: tree.pop("schema_version"), "schema_version"),
        (lambda tree: tree["golden"].update(file="../golden.npz"), r"no checksum of \.\./golden\.npz"),
        (lambda tree: tree["schedules"][0].update(file="other.npz"), r"no checksum of other\.npz"),
        (lambda tree: _graph(tree).update(data_file="b.data"), r"no checksum of b\.data"),
        (lambda tree: tree.update(channels=-5), "channels is -5"),
        (lambda tree: tree.update(samples=0), "samples is 0"),
        (lambda tree: tree.update(sfreq=0.0), "sfreq is 0"),
        (lambda tree: tree.update(sfreq=float("nan")), "sfreq is nan"),
        (lambda tree: tree.update(sfreq=10**400), "sfreq is 1000"),
        (lambda tree: tree["profiles"][0].update(max=-3), "profile default: 1, 2, -3 are not"),
        (lambda tree: tree["profiles"][0].update(min=0), "profile default: 0, 2, 4 are not"),
        (lambda tree: tree["schedules"][0].update(steps=0), "steps of ddim is 0"),
        (lambda tree: tree["files"]["golden.npz"].update(bytes=-1), r"golden\.npz\.bytes is -1"),
        (
            lambda tree: tree.update(latent=dict(channels=4, height=8, width=-8, downsampling=8)),
            "width is -8",
        ),
        (lambda tree: tree["golden"]["tolerances"].update(unet=1.0), "tolerances has unet"),
        (lambda tree: tree["golden"]["tolerances"].update(eeg_encoder=-1.0), "eeg_encoder is -1"),
        (
            lambda tree: _graph(tree)["inputs"][0].update(shape=["batch", 8, "time"]),
            "eeg is float32 of shape",
        ),
        (lambda tree: _graph(tree)["inputs"][0].update(shape=[1, 8, 64]), "eeg is float32 of shape"),
        (lambda tree: _graph(tree)["inputs"][0].update(shape=[]), "eeg is float32 of shape"),
        (lambda tree: _graph(tree)["inputs"][0].update(dtype="object"), "eeg is object"),
        (lambda tree: tree["graphs"].update({"../unet": _graph(tree)}), r"graphs has '\.\./unet'"),
    ],
)
def test_a_damaged_manifest_is_refused_naming_the_place(folder, change, named):
    _edit(folder, change)
    with pytest.raises(m.ManifestError, match=f"damaged.*{named}"):
        m.Manifest.load(folder)


def _graph(tree):
    return tree["graphs"]["eeg_encoder"]


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "./x", "a//x", "a/", "", "C:x", "a\\x", "..", "x\0"]
)
def test_names_that_lead_out_of_the_folder_are_refused(folder, name):
    def rename(tree):
        tree["files"][name] = tree["files"].pop("golden.npz")
        tree["golden"]["file"] = name

    _edit(folder, rename)
    with pytest.raises(m.ManifestError, match=r"damaged.*no plain name below the folder"):
        m.Manifest.load(folder)


def test_keys_that_came_later_may_be_missing(folder):
    """As `beside` in what was exported before there was one."""
    expected = m.Manifest.load(folder)

    def earlier(tree):
        del tree["source"]["beside"], tree["notes"], tree["unit"]

    _edit(folder, earlier)
    assert m.Manifest.load(folder) == expected


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\xff", "[" * 200_000, '{"a":' * 100_000])
def test_what_is_no_manifest_is_refused(folder, text):
    (folder / m.FILE_NAME).write_text(text)
    with pytest.raises(m.ManifestError, match="damaged"):
        m.Manifest.load(folder)


def test_a_changed_byte_is_found_and_the_file_named(folder):
    (folder / "eeg_encoder.onnx").write_bytes(b"a graqh")
    with pytest.raises(m.ManifestError, match=r"eeg_encoder\.onnx has SHA-256"):
        m.Manifest.load(folder).check_files(folder)
    m.Manifest.load(folder).check_files(folder, ["golden.npz"])


def test_all_that_is_wrong_with_files_is_said_at_once(folder):
    (folder / "eeg_encoder.onnx").write_bytes(b"short")
    (folder / "golden.npz").unlink()
    with pytest.raises(m.ManifestError, match=r"has 5 bytes instead of 7; golden\.npz is missing"):
        m.Manifest.load(folder).check_files(folder)


@pytest.mark.parametrize("name", ["eeg_encoder.onnx", "eeg_encoder.onnx.data"])
def test_changed_weights_are_found_when_the_graph_alone_is_asked_for(folder, name):
    changed = bytearray((folder / name).read_bytes())
    changed[-1] ^= 1
    (folder / name).write_bytes(changed)
    with pytest.raises(m.ManifestError, match=f"exported: {name} has SHA-256"):
        m.Manifest.load(folder).check_files(folder, ["eeg_encoder.onnx"])


def test_a_manifest_that_disowns_the_weights_is_found_out(folder):
    _edit(folder, lambda tree: _graph(tree).update(data_file=None))
    (folder / "eeg_encoder.onnx.data").write_bytes(b"its w3ights")
    with pytest.raises(
        m.ManifestError, match=r"eeg_encoder\.onnx is not what the manifest says of eeg_encoder"
    ):
        m.Manifest.load(folder).check_files(folder, ["eeg_encoder.onnx"])


def test_a_manifest_whose_checksums_were_changed_with_a_file_is_found_out(folder):
    path = folder / "eeg_encoder.onnx.data"
    path.write_bytes(b"its w3ights")
    _edit(folder, lambda tree: tree["files"][path.name].update(sha256=m.sha256_of(path)))
    with pytest.raises(m.ManifestError, match="is not what the manifest says of eeg_encoder"):
        m.Manifest.load(folder).check_files(folder)


def test_large_files_are_read_once(folder, monkeypatch):
    read = []
    known = m.sha256_of
    monkeypatch.setattr(m, "sha256_of", lambda *paths: [read.extend(paths), known(*paths)][1])
    manifest = m.Manifest.load(folder)
    manifest.check_files(folder)
    assert sorted(path.relative_to(folder).as_posix() for path in read) == sorted(manifest.files)


def test_the_folder_above_says_which_exports_it_has(folder):
    inside = folder / "out" / "fp32"
    inside.mkdir(parents=True)
    (inside / m.FILE_NAME).write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"its exports are fp32: give .*fp32"):
        m.Manifest.load(folder / "out")


def test_what_was_not_exported_is_named_beside_what_was(folder):
    manifest = m.Manifest.load(folder)
    assert manifest.schedule("ddim", 4).file == "schedules/ddim-4.npz"
    with pytest.raises(m.ManifestError, match="no table for ddim with 5 steps; it has ddim with 4 steps"):
        manifest.schedule("ddim", 5)
    with pytest.raises(m.ManifestError, match="no unet: it has eeg_encoder"):
        manifest.graph(m.UNET)


def test_guidance_doubles_the_unets_batches_alone(folder):
    manifest = m.Manifest.load(folder)
    (profile,) = manifest.profiles
    assert manifest.batches(m.DECODER, profile) == (1, 2, 4)
    assert manifest.batches(m.UNET, profile) == (1, 4, 8)


def test_numbers_that_json_cannot_hold_are_not_written(folder):
    manifest = dataclasses.replace(m.Manifest.load(folder), vae_scale=float("nan"))
    before = (folder / m.FILE_NAME).read_text()
    with pytest.raises(ValueError, match="Out of range"):
        manifest.save(folder)
    assert (folder / m.FILE_NAME).read_text() == before
