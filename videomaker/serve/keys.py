"""API keys and signed links: who asks, and what a player may fetch without a key."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets as random
import time
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from videomaker.digests import sha256
from videomaker.errors import InputError

from .database import NOW, Database
from .tables import api_keys, secrets, videos

PREFIX = "vm_"
LINK_SECONDS = 3600  # a link is good for one to two of these


@dataclass(frozen=True)
class Owner:
    """Whose request it is, and the limits of the key."""

    id: str
    name: str
    priority: int = 0
    max_active: int | None = None
    max_per_hour: int | None = None


LOCAL = Owner("local", "local")  # everybody, where there are no keys and only this machine can ask


class Keys:
    """The table `api_keys`. A key is shown once; what is kept is its SHA-256, which 256 random bits make enough."""

    def __init__(self, database: Database):
        self.database = database

    def create(self, name: str, *, adopt: bool = False, **limits: Any) -> str:
        """A new key for `name`; of a revoked name it is the same owner's, with the videos that were made before.

        Args:
            name: whose it is.
            adopt: whether the videos that were made before there were keys are this owner's from now on.
            limits: `priority`, `max_active` and `max_per_hour`.

        Raises:
            InputError: the name is empty, or its key is in use.
        """
        if not name.strip():
            raise InputError("the name of a key is empty: say whose it is")
        key = PREFIX + random.token_urlsafe(32)
        values = {"digest": _digest(key), "created": NOW, "revoked": None, **limits}
        known = api_keys.c.name == name
        revoked = update(api_keys).where(known, api_keys.c.revoked.is_not(None)).values(values)
        try:
            with self.database.write() as connection:
                if not connection.execute(revoked).rowcount:
                    id = f"key_{uuid.uuid4().hex[:16]}"
                    connection.execute(insert(api_keys).values(id=id, name=name, **values))
                if adopt:
                    owner = select(api_keys.c.id).where(known).scalar_subquery()
                    connection.execute(update(videos).where(videos.c.owner == LOCAL.id).values(owner=owner))
        except IntegrityError as error:
            raise InputError(f"there is a key {name!r} in use: revoke it, or choose another name") from error
        return key

    def count_without_key(self) -> int:
        """Videos that were made before there were keys, which no key shows until one adopts them."""
        with self.database.read() as connection:
            return connection.scalar(select(func.count()).where(videos.c.owner == LOCAL.id)) or 0

    def list(self) -> list[Row]:
        """All keys, the oldest first, the revoked among them."""
        with self.database.read() as connection:
            return list(connection.execute(select(api_keys).order_by(api_keys.c.created)))

    def revoke(self, name: str) -> None:
        """Makes a key useless from now on; its owner's videos stay.

        Raises:
            InputError: there is no such key in use.
        """
        mine = update(api_keys).where(api_keys.c.name == name, api_keys.c.revoked.is_(None))
        with self.database.write() as connection:
            if not connection.execute(mine.values(revoked=NOW)).rowcount:
                raise InputError(f"there is no key {name!r} in use: see videomaker keys list")

    def exist(self) -> bool:
        """Whether any key was ever made: from then on every request needs one, also after the last is revoked."""
        with self.database.read() as connection:
            return connection.scalar(_ANY) is not None

    def owner(self, key: str) -> Owner | None:
        """Whose key it is; None when it is nobody's."""
        with self.database.read() as connection:
            row = connection.execute(_OWNER, {"digest": _digest(key)}).first()
        return None if row is None else Owner(*row)


# Asked with every request, so built once.
_ANY = select(api_keys.c.id).limit(1)
_COLUMNS = (getattr(api_keys.c, name) for name in ("id", "name", "priority", "max_active", "max_per_hour"))
_OWNER = select(*_COLUMNS).where(api_keys.c.digest == bindparam("digest"), api_keys.c.revoked.is_(None))


def _digest(key: str) -> str:
    return sha256(key)


class Signer:
    """Links that are good for a while, signed with a secret that all replicas share through the database."""

    def __init__(self, database: Database):
        known = select(secrets.c.value).where(secrets.c.name == "links")
        try:
            with database.write() as connection:
                value = connection.scalar(known)
                if value is None:
                    value = random.token_hex(32)
                    connection.execute(insert(secrets).values(name="links", value=value))
        except IntegrityError:  # another replica was first
            with database.read() as connection:
                value = connection.scalar(known)
        assert value is not None  # this replica's, or the other's
        self._secret = bytes.fromhex(value)

    def link(self, id: str, what: str, expires: int | None = None) -> str:
        """The query of a link to `what` of a video; the same for an hour, so that players need not load again.

        `expires`, in seconds since 1970, is for what is shown by a link: nothing that outlives it.
        """
        if expires is None:
            expires = (math.ceil(time.time() / LINK_SECONDS) + 1) * LINK_SECONDS
        return f"expires={expires}&signature={self._sign(id, what, expires)}"

    def is_good(self, id: str, what: str, expires: str, signature: str) -> bool:
        """Whether a link is ours and still good."""
        if not (expires.isascii() and expires.isdigit() and len(expires) < 16) or int(expires) < time.time():
            return False
        return hmac.compare_digest(self._sign(id, what, int(expires)).encode(), signature.encode())

    def _sign(self, id: str, what: str, expires: int) -> str:
        return hmac.new(self._secret, f"{id}\n{what}\n{expires}".encode(), hashlib.sha256).hexdigest()
