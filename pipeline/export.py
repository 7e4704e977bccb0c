"""Export the protected images as a folder of image files: `python pipeline/export.py --run URI --to FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from pipeline.config.flags import call
from pipeline.storage.folder import Folder
from pipeline.storage.layout import QUARANTINE
from pipeline.storage.run import existing_run
from pipeline.storage.stage import Manifest


def _export_run(
    run: str,
    to: str,
    format: Literal["png", "webp-lossless", "jpeg", "as-source"] = "png",  # the flag's name
    quality: int | None = None,
    keep_metadata: bool = False,
) -> int:
    """Export the protected images as <to>/<class name>/<original name>.png, or in another format.

    Args:
        run: folder or URI (s3://...) of a run with protected images, of an addition to one, or of a point of a sweep
        to: local folder to create; must be empty if it exists
        format: png and webp-lossless have exactly the protected levels; jpeg loses some of the protection; as-source: each image in the
            format of its source, JPEG with its quantisation tables and subsampling where the run has them, other kinds than PNG, JPEG and
            WebP as PNG
        quality: quality from 1 to 100 for jpeg, and for lossy as-source files whose own quality is unknown; 90 if not given
        keep_metadata: keep EXIF data, including the location, of photographs at their own size; colour profiles always stay
    """
    from pipeline.operations.image_folder import ExportConfig, export  # loads torch, which `--help` need not wait for

    config = ExportConfig(format, quality, keep_metadata)
    folder, target = existing_run(run), Folder.open(to)
    record = export(folder, target, config)
    written = len(record.files)
    pack, manifest = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    quarantined = pack.counts.get("quarantined", 0)
    protected = manifest.counts.get("protected", written)
    images = f"{written} protected images" if protected == written else f"{written} images, {protected} of them protected,"
    if record.lossy:
        print(f"{record.on_lossy()}; to see what is left of the protection, train victims with --victim.stored")
    if manifest.missing:
        print(f"the images of {len(manifest.missing)} shards are missing: crafting them failed, and the run continued without them")
    print(f"{images} in {target.path}, format {record.name}; {quarantined} quarantined inputs are not among them (pack/{QUARANTINE})")
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
