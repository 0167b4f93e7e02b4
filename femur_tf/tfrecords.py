"""TFRecord files: written whole, and where a damaged one stops being readable."""

from __future__ import annotations

from pathlib import Path

from femur_tf import files


def write(path: Path, examples: list[bytes]) -> None:
    """Write serialized examples to one file, whole."""
    import tensorflow as tf

    with files.whole(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
        for example in examples:
            writer.write(example)


def first_bad_byte(path: Path) -> str:
    """Return where a file stops being readable, in words."""
    import tensorflow as tf

    offset = 0
    try:
        for record in tf.data.TFRecordDataset([str(path)]):
            offset += len(record.numpy()) + 16  # 8 bytes of length, 4 of its checksum, 4 of the data's
    except tf.errors.DataLossError:
        return f"the record that starts at byte {offset} is damaged"
    return f"every record can be read, up to byte {offset}"
