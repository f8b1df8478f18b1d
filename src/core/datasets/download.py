"""placeholder"""


def fetch_missing(config, folder):
    return
