"""Stand-in for Slicer's `slicer.i18n`: the text goes through `slicer.app.translate`."""

import slicer


def translate(context, text):
    return slicer.app.translate(context, text)


def tr(text):
    return slicer.app.translate("", text)
