"""HTTP/1.1 on asyncio's protocols and llhttp: as little between two sockets as Python allows. See README.md."""
