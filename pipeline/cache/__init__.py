"""The teacher cache: format, codec, writer, reader, verification."""
