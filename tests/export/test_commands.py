"""The commands, as typed."""

import subprocess
import sys

from export_stores import parts, write
from typer.testing import CliRunner

from pipeline.__main__ import app

INVOKE = CliRunner().invoke


def test_make_a_key_export_and_verify(tmp_path):
    run = tmp_path / "run"
    info = write(run / "assemble" / "dataset", parts())
    (run / "train").mkdir()
    (run / "train" / "training_ids.txt").write_text("a" * 64)
    made = INVOKE(app, ["keygen", str(tmp_path / "keys")])
    assert made.exit_code == 0
    fingerprint = made.output.split()[-1]
    key, public = (str(tmp_path / "keys" / f"replenish-{x}.pem") for x in ("private", "public"))
    out = str(tmp_path / "out")
    words = [str(run / "assemble" / "dataset"), "--format", "folder", "--out", out, "--key", key]
    done = INVOKE(app, ["export", *words, "--images-per-shard", "5"])
    assert done.exit_code == 0, done.output
    assert "26 rows, 5 of them synthetic, in 6 shards" in done.output
    assert fingerprint in done.output
    checked = INVOKE(app, ["verify", out, "--public-key", public])
    assert checked.exit_code == 0, checked.output
    assert "the generator learned from 1 images, none in test" in checked.output
    assert info.digest[:12] in checked.output
    (tmp_path / "out" / "README.md").write_text("x")
    assert "PROBLEM" in INVOKE(app, ["verify", out]).output
    bare = ["export", *words[:3], "--out", str(tmp_path / "bare")]
    assert "Not signed" in INVOKE(app, bare).output


def test_the_command_line_imports_nothing_heavy():
    code = (
        "import sys, pipeline.__main__\n"
        "print([one for one in ('pyarrow', 'torch', 'cryptography', 'PIL') if one in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert shown.strip() == "[]"
