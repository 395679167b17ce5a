"""A storage SCP: other applications send instances, each is on our disk before it is answered for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from medseg3d.errors import ImageReadError, InputError, StorageError
from medseg3d.images.dicom_file import EXPLICIT, IMPLICIT
from medseg3d.images.dicom_pixels import JPEG, RUN_LENGTH
from medseg3d.listening.rules import Receive
from medseg3d.listening.spool import Spool
from medseg3d.listening.tls import receiving_context

if TYPE_CHECKING:
    from pynetdicom.events import Event

logger = logging.getLogger(__name__)
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
"""Statuses of C-STORE (PS3.4, B.2.3): for the second the sender comes again, for the third it need not."""
SYNTAXES = (EXPLICIT, IMPLICIT, RUN_LENGTH, *JPEG)
"""Transfer syntaxes whose pictures we can read; a sender that has another decodes it, or is refused."""
SECONDS = 60.0
"""After which a silent sender is sent away."""
MAX_ASSOCIATIONS = 20


@contextmanager
def receiving(receive: Receive, spool: Spool) -> Iterator[int | None]:
    """Listen while the block lasts; yields the port, None where there is none to listen on.

    Raises :class:`InputError` where the port is taken, or a certificate is none.
    """
    if receive.port is None:
        yield None
        return
    from pynetdicom import AE, AllStoragePresentationContexts, evt
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined,unused-ignore]

    entity = AE(ae_title=receive.ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = SECONDS
    entity.maximum_associations = MAX_ASSOCIATIONS
    entity.require_called_aet = True
    entity.require_calling_aet = list(receive.callers)
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax, list(SYNTAXES))
    entity.add_supported_context(Verification)
    try:
        server: Any = entity.start_server(
            (receive.host, receive.port),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, lambda event: keep(event, spool))],
            ssl_context=receiving_context(receive),
        )
    except OSError as error:
        raise InputError(f"{receive.host}, port {receive.port}: cannot be listened on ({error.strerror}). Name another port.") from None
    try:
        yield int(server.socket.getsockname()[1])
    finally:
        server.shutdown()


def keep(event: Event, spool: Spool) -> int:
    """Write an instance as it came, without reading more of it than which study, series and instance it is; the status to answer."""
    try:
        spool.add(event.encoded_dataset(include_meta=True))
    except ImageReadError:
        logger.warning("An instance that came cannot be read; it was refused.")
        return CANNOT_UNDERSTAND
    except (StorageError, MemoryError) as error:
        logger.error("An instance cannot be kept: %s", error)
        return OUT_OF_RESOURCES
    return SUCCESS
