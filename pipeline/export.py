"""Export the protected images as a folder of PNGs: `python pipeline/export.py --run URI --to FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.config.flags import call
from pipeline.storage.folder import Folder
from pipeline.storage.layout import QUARANTINE
from pipeline.storage.run import existing_run
from pipeline.storage.stage import Manifest


def _export_run(run: str, to: str) -> int:
    """Export the protected images as <to>/<class name>/<original name>.png.

    Args:
        run: folder or URI (s3://...) of a run with protected images, of an addition to one, or of a point of a sweep
        to: local folder to create; refused if there is anything in it
    """
    from pipeline.operations.image_folder import export  # loads torch, which `--help` need not wait for

    folder, target = existing_run(run), Folder.open(to)
    written = export(folder, target)
    pack, manifest = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    quarantined = pack.counts.get("quarantined", 0)
    protected = manifest.counts.get("protected", written)
    images = f"{written} protected images" if protected == written else f"{written} images, {protected} of them protected,"
    if manifest.missing:
        print(f"the images of {len(manifest.missing)} shards are missing: crafting them failed, and the run kept going without them")
    print(f"{images} in {target.path}; {quarantined} quarantined inputs are not among them (pack/{QUARANTINE})")
    if tests := sum(shard.count for shard in manifest.shards.get("test", [])):
        print(f"{tests} of them are the images for testing, protected like the others; the victims were measured on their clean copies")
    elif left := pack.counts.get("test", 0):
        print(f"the {left} test images of the source are not among them: --protect.splits train test protects them too")
    return 0


def main(arguments: Sequence[str] | None = None, program: str = "export.py") -> int:
    """Export, and return the exit code: 0 for success, 1 for a failure, which is printed, 2 for wrong usage."""
    try:
        return call(_export_run, program, arguments)
    except (ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
