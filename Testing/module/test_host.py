"""The host application keeps Qt's own ways where the module's tests depend on them."""

from __future__ import annotations

from host import pythonqt
from host.application import MODULE_FOLDER, loadModule, openWidget


def test_reading_a_property_never_leads_back_to_itself(monkeypatch):
    """A virtual reader such as sizeHint did, some 350 times over, until the stack of the process was used up."""
    module, _ = loadModule(MODULE_FOLDER / "CaLIDReconstruct.py")
    depths = [0]
    read = pythonqt._Property.__get__

    def counted(self, instance, owner):
        depths.append(depths[-1] + 1)
        deepest.append(depths[-1])
        try:
            return read(self, instance, owner)
        finally:
            depths.pop()

    deepest = []
    monkeypatch.setattr(pythonqt._Property, "__get__", counted)
    widget = openWidget(module, "CaLIDReconstruct")
    widget.parent.show()
    widget.parent.grab()
    widget.cleanup()
    assert max(deepest) == 1
