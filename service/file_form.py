"""A multipart form with one file, read as a stream: the file goes past, the small fields stay."""

from collections.abc import AsyncIterator
from email.message import Message
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from api_schemas.errors import LikenessError

#: `file`, `purpose`, and what OpenAI's clients may add (`expires_after[anchor]`, `expires_after[seconds]`).
_MOST_PARTS = 8
_LONGEST_FIELD_BYTES = 8 * 1024


class FileForm:
    """Reads the form's bytes as they come. After `file_chunks` is through, `fields` and `filename` are known.

    `file_field` is the name of the field that holds the file. `filename` stays None if the form lacks it.
    Raises LikenessError `unsupported_media_type`, `invalid_multipart`, `too_many_parts` or `invalid_unicode`.
    """

    def __init__(self, content_type: str, file_field: str = "file") -> None:
        self._file_field = file_field
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._parts = 0
        self._ended = False
        self._header_name = b""
        self._header_value = b""
        self._headers = Message()
        self._field: str | None = None
        self._value = b""
        self._file_data: list[bytes] = []
        self._parser = MultipartParser(_boundary(content_type, file_field), self._callbacks())

    async def file_chunks(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The bytes of the file, in the pieces in which they arrive."""
        async for piece in body:
            try:
                self._parser.write(piece)
            except FormParserError as error:
                raise _broken(str(error)) from error
            for data in self._file_data:
                yield data
            self._file_data.clear()
        if not self._ended:
            raise _broken("it ends before its closing boundary")

    def _callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._more_header_name,
            "on_header_value": self._more_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._more_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise LikenessError("too_many_parts", f"The form has more than {_MOST_PARTS} parts; send one file a form.")
        self._headers = Message()

    def _more_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _more_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        name, value = _text(self._header_name, "a header"), _text(self._header_value, "a header")
        self._headers[name] = value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        name = self._headers.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise _broken("a part has no name")
        self._field, self._value = name, b""
        if name == self._file_field:
            if self.filename is not None:
                raise LikenessError("too_many_parts", f"The form has more than one {name!r}.", param=name)
            self.filename = _filename(self._headers) or "upload.jsonl"

    def _more_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == self._file_field:
            self._file_data.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _LONGEST_FIELD_BYTES:
            raise LikenessError("input_too_long", "The field is too long for a form's field.", param=self._field)

    def _end_part(self) -> None:
        if self._field is not None and self._field != self._file_field:
            self.fields[self._field] = _text(self._value, f"field {self._field!r}")

    def _end(self) -> None:
        self._ended = True


def _boundary(content_type: str, file_field: str) -> bytes:
    header = Message()
    header["content-type"] = content_type
    if header.get_content_type() != "multipart/form-data":
        raise LikenessError(
            "unsupported_media_type",
            f"Send the bytes as multipart/form-data, in the field {file_field!r}.",
        )
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise _broken("its Content-Type names no boundary")
    return boundary.encode("latin-1", "replace")


def _filename(headers: Message) -> str | None:
    try:
        return headers.get_filename()
    except UnicodeError as error:  # `filename*` may name any codec, such as one that decodes nothing
        raise _broken("a file's name is in an encoding that can't be read; send UTF-8") from error


def _text(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise LikenessError("invalid_unicode", f"In the form, {what} is not UTF-8.") from error


def _broken(why: str) -> LikenessError:
    return LikenessError("invalid_multipart", f"The multipart form can't be read: {why}.")
