#!/usr/bin/env python3
"""Writes the image's root file system as a tar, the same bytes for the same inputs.

The list is layout.tsv beside this file; it is the only description of the image's contents."""
import argparse
import io
import os
import sys
import tarfile

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))


def entries():
    with open(os.path.join(HERE, "layout.tsv"), encoding="utf-8") as layout:
        for number, line in enumerate(layout, 1):
            line = line.rstrip("\n")
            if not line or line.startswith("#"):
                continue
            fields = line.split("\t")
            if len(fields) not in (5, 6):
                sys.exit(f"layout.tsv:{number}: {len(fields)} fields")
            kind, mode, uid, gid, path = fields[:5]
            yield kind, int(mode, 8), int(uid), int(gid), path, fields[5] if len(fields) == 6 else ""


def source_path(source, binaries):
    if source.startswith("bin/"):
        return os.path.join(binaries, source[len("bin/"):])
    return os.path.join(REPOSITORY, source)  # an absolute source stays absolute


def add(tar, entry, binaries):
    kind, mode, uid, gid, path, source = entry
    info = tarfile.TarInfo(path)
    info.mode, info.uid, info.gid, info.mtime = mode, uid, gid, 0
    data = None
    if kind == "dir":
        info.type = tarfile.DIRTYPE
    elif kind == "link":
        info.type, info.linkname = tarfile.SYMTYPE, source
    elif kind == "text":
        data = source.replace("\\n", "\n").encode()
    elif kind == "file":
        try:
            with open(source_path(source, binaries), "rb") as file:
                data = file.read()
        except OSError as error:
            sys.exit(f"rootfs: {path}: {error}")
    else:
        sys.exit(f"layout.tsv: kind {kind!r}")
    if data is None:
        tar.addfile(info)
    else:
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", required=True, help="folder with the three binaries")
    parser.add_argument("--out", required=True, help="tar to write")
    args = parser.parse_args()
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    partial = args.out + ".partial"
    with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries():
            add(tar, entry, args.bin)
    os.replace(partial, args.out)
    print(f"rootfs: {args.out}, {os.path.getsize(args.out)} bytes")


if __name__ == "__main__":
    main()
