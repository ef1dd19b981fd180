"""moto's KMS as its own process, with the one thing that moto lacks: MessageType=DIGEST, signing a hash as it is.

securesystemslib hashes here and sends the hash; moto 5.2.5 would hash that again ("not yet implemented" in its
`kms/models.py`), so every signature would be of something else. Run: python kms_server.py PORT
"""

from __future__ import annotations

import sys
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from moto.kms import utils
from moto.server import main

HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def sign_digest(self: Any, message: bytes, signing_algorithm: str) -> bytes:
    """As AWS signs with MessageType=DIGEST; the salt of PSS is as long as the hash, as AWS documents it."""
    algorithm = HASHES[signing_algorithm[-3:]]
    key = self.private_key
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=padding.PSS.DIGEST_LENGTH)
        return key.sign(message, pss if "PSS" in signing_algorithm else padding.PKCS1v15(), Prehashed(algorithm))
    signed: bytes = key.sign(message, ec.ECDSA(Prehashed(algorithm)))
    return signed


if __name__ == "__main__":
    utils.RSAPrivateKey.sign = sign_digest
    utils.ECDSAPrivateKey.sign = sign_digest
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
