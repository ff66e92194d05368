"""`python -m appmgr` is `cmappmgr`."""

from appmgr.cli import main

if __name__ == "__main__":
    main()
