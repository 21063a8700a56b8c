"""The long-axis comparison: which planes, where, in which views; linked; the user's layout given back."""

from __future__ import annotations

import hearts
import numpy as np
import phantoms
import pytest
import slicer
from CaLIDReconstructLib import Inputs, LaxLayout, LaxPlanes, Nodes
from CaLIDReconstructLib.Messages import ModuleError

FRAMES = 4
HEART = phantoms.heart_frame(3)


@pytest.fixture
def case(views):
    """A cine, its result and two long-axis cines in the scene, with views to show them in."""
    assert views.layoutNode is not None
    original, _ = hearts.addPicture(FRAMES)
    upsampled, _ = Nodes.addStack(hearts.dense(hearts.picture(FRAMES), 4), "SAX dense")
    upsampled.SetAttribute("CaLID.Provenance", "{}")
    two, _ = Nodes.addStack(hearts.longAxis(hearts.picture(FRAMES), HEART, angle=np.pi / 2), "2ch")
    four, _ = Nodes.addStack(hearts.longAxis(hearts.picture(FRAMES), HEART), "4ch")
    return original, upsampled, two, four


def comparisonOf(case) -> LaxLayout.LaxComparison:
    original, upsampled, _, _ = case
    return LaxLayout.LaxComparison(original, upsampled, LaxPlanes.acquiredPlanes(original))


def composite(views, row: int, column: str):
    return views.views[LaxLayout.viewTag(row, column)].composite


def test_the_long_axis_images_of_the_scene_are_found_and_nothing_else(case):
    original, _, two, four = case
    parallel = Nodes.addVolume(
        hearts.picture().with_voxels(hearts.picture().voxels[:, :1], generated=None), "localizer"
    )
    planes = LaxPlanes.acquiredPlanes(original)
    assert [plane.volume for plane in planes] == [two, four]
    assert [plane.name for plane in planes] == ["2ch", "4ch"]
    assert parallel not in [plane.volume for plane in planes]


def test_a_view_shows_the_plane_in_which_the_image_was_acquired(case):
    original, _, _, four = case
    plane = LaxPlanes.acquiredPlanes(original)[1]
    image = Nodes.stackFromVolume(four)
    rasCorners = np.array([image.to_lps(np.array(index)) for index in ((0, 0, 0), (89, 0, 0), (0, 75, 0))]) * [
        -1,
        -1,
        1,
    ]
    local = (np.c_[rasCorners, np.ones(3)] @ np.linalg.inv(plane.sliceToRas).T)[:, :3]
    assert np.allclose(local[:, 2], 0, atol=1e-6)
    assert local[1, 0] > local[0, 0]
    assert local[2, 1] < local[0, 1]


def test_views_are_centered_where_the_planes_meet_in_the_heart(case):
    original = case[0]
    base_ras = np.array([12.0, -31.0, 7.0]) * [-1, -1, 1]
    axis_ras = HEART[:, 2] * [-1, -1, 1]
    for plane in LaxPlanes.acquiredPlanes(original):
        away = plane.sliceToRas[:3, 3] - base_ras
        assert np.linalg.norm(away - (away @ axis_ras) * axis_ras) < 3


def test_each_column_shows_its_volume(case, views):
    original, upsampled, two, _ = case
    comparisonOf(case).enter()
    shown = [composite(views, 0, column).GetBackgroundVolumeID() for column in LaxLayout.COLUMNS]
    assert shown == [two.GetID(), original.GetID(), upsampled.GetID()]


def test_the_views_show_the_same_anatomy_in_the_same_place(case, views):
    comparison = comparisonOf(case)
    comparison.enter()
    comparison.fill()
    pictures = [views.views[LaxLayout.viewTag(1, column)].pixels() for column in LaxLayout.COLUMNS]
    assert all(picture.std() > 20 for picture in pictures)
    acquired, original = (picture.astype(float).mean(axis=-1) for picture in pictures[:2])
    middle = np.s_[60:180, 60:180]
    assert np.corrcoef(acquired[middle].ravel(), original[middle].ravel())[0, 1] > 0.5


def test_pan_and_zoom_are_linked_along_a_row_and_not_across(case, views):
    comparisonOf(case).enter()
    leader = views.views[LaxLayout.viewTag(0, "acquired")]
    sibling, other = (views.views[LaxLayout.viewTag(row, "upsampled")].node for row in (0, 1))
    otherBefore = other.GetFieldOfView()[0], tuple(other.GetXYZOrigin())
    leader.logic.StartSliceNodeInteraction(
        slicer.vtkMRMLSliceNode.XYZOriginFlag | slicer.vtkMRMLSliceNode.FieldOfViewFlag
    )
    leader.node.SetXYZOrigin(12.0, -7.0, 0.0)
    leader.node.SetFieldOfView(90.0, 90.0, leader.node.GetFieldOfView()[2])
    leader.logic.EndSliceNodeInteraction()
    assert np.allclose(sibling.GetXYZOrigin(), (12, -7, 0))
    assert sibling.GetFieldOfView()[0] == pytest.approx(90)
    assert (other.GetFieldOfView()[0], tuple(other.GetXYZOrigin())) == otherBefore


def test_the_long_axis_cines_follow_the_frame_of_the_short_axis_cine(case):
    original, _, two, _ = case
    comparisonOf(case).enter()
    Inputs.resolve(original).browser.SetSelectedItemNumber(2)
    assert Inputs.resolve(two).browser.GetSelectedItemNumber() == 2


def test_the_two_planes_that_cross_most_squarely_are_shown_in_3d(case, views):
    three = Nodes.addStack(hearts.longAxis(hearts.picture(FRAMES), HEART, angle=0.5), "3ch")[0]
    comparison = comparisonOf(case)
    assert three in [plane.volume for plane in comparison.planes]
    comparison.enter()
    visible = {
        plane.name
        for row, plane in enumerate(comparison.planes)
        if views.views[LaxLayout.viewTag(row, "upsampled")].node.GetSliceVisible()
    }
    assert visible == {"2ch", "4ch"}
    assert not views.views[LaxLayout.viewTag(0, "original")].node.GetSliceVisible()


@pytest.fixture
def fivePlanes(case):
    """The case with five long-axis cines, as the demo case has."""
    for index, name in enumerate(("lvot", "rv-2ch", "rvot")):
        Nodes.addStack(hearts.longAxis(hearts.picture(FRAMES), HEART, angle=0.3 + 0.4 * index), name)
    return LaxPlanes.acquiredPlanes(case[0])


def test_every_long_axis_image_of_the_scene_can_be_compared(case, fivePlanes, views):
    assert [plane.name for plane in fivePlanes] == ["2ch", "4ch", "lvot", "rv-2ch", "rvot"]
    LaxLayout.LaxComparison(case[0], case[1], fivePlanes).enter()
    shown = [composite(views, row, "acquired").GetBackgroundVolumeID() for row in range(5)]
    assert shown == [plane.volume.GetID() for plane in fivePlanes]
    pictures = [views.views[LaxLayout.viewTag(row, "upsampled")].pixels() for row in range(5)]
    assert all(picture.std() > 20 for picture in pictures)


def test_other_planes_take_the_place_of_the_first_ones(case, fivePlanes, views):
    before = views.layoutNode.GetViewArrangement()
    comparison = LaxLayout.LaxComparison(case[0], case[1], fivePlanes[:2])
    comparison.enter()
    first = views.views[LaxLayout.viewTag(0, "acquired")]
    oldLabel = first.node.GetLayoutLabel()
    comparison.show(fivePlanes[3:])
    assert composite(views, 0, "acquired").GetBackgroundVolumeID() == fivePlanes[3].volume.GetID()
    assert np.allclose(
        slicer.util.arrayFromVTKMatrix(first.node.GetSliceToRAS())[:3, 2], fivePlanes[3].sliceToRas[:3, 2]
    )
    assert (oldLabel, first.node.GetLayoutLabel()) == ("2ch acquired", "rv-2ch acquired")
    Inputs.resolve(case[0]).browser.SetSelectedItemNumber(3)
    followed = [Inputs.resolve(plane.volume).browser.GetSelectedItemNumber() for plane in fivePlanes]
    assert followed[3:] == [3, 3]  # only what is shown follows the short-axis cine's frame
    assert followed[:2] == [0, 0]
    comparison.show(fivePlanes[2:3])
    assert not views.views[LaxLayout.viewTag(1, "upsampled")].node.GetSliceVisible()
    comparison.leave()
    assert views.layoutNode.GetViewArrangement() == before


def test_toggling_shows_the_original_in_the_upsampled_views_and_back(case, views):
    original, upsampled, _, _ = case
    comparison = comparisonOf(case)
    comparison.enter()
    comparison.showOriginal(True)
    assert composite(views, 0, "upsampled").GetBackgroundVolumeID() == original.GetID()
    comparison.showOriginal(False)
    assert composite(views, 0, "upsampled").GetBackgroundVolumeID() == upsampled.GetID()


def test_another_result_takes_the_place_of_the_first_as_the_views_are(case, views):
    another = Nodes.addVolume(hearts.dense(hearts.picture(), 2), "another")
    mask = Nodes.addVolume(hearts.dense(hearts.picture(), 2), "mask", nodeClass="vtkMRMLLabelMapVolumeNode")
    comparison = comparisonOf(case)
    comparison.enter()
    view = views.views[LaxLayout.viewTag(0, "upsampled")]
    view.node.SetFieldOfView(30, 30, 1)
    comparison.showResult(another, mask)
    assert view.composite.GetBackgroundVolumeID() == another.GetID()
    assert view.node.GetFieldOfView()[0] == 30  # as the user zoomed
    assert composite(views, 0, "original").GetBackgroundVolumeID() == case[0].GetID()
    comparison.tintGenerated(True)
    assert view.composite.GetLabelVolumeID() == mask.GetID()


def test_leaving_gives_the_users_layout_back(case, views):
    before = views.layoutNode.GetViewArrangement()
    comparison = comparisonOf(case)
    comparison.enter()
    assert views.layoutNode.GetViewArrangement() != before
    comparison.leave()
    assert views.layoutNode.GetViewArrangement() == before
    assert not views.views[LaxLayout.viewTag(0, "upsampled")].node.GetSliceVisible()


def test_a_layout_that_the_user_chose_meanwhile_stays(case, views):
    changes = []
    comparison = LaxLayout.LaxComparison(
        case[0], case[1], LaxPlanes.acquiredPlanes(case[0]), onLayoutChanged=lambda: changes.append(True)
    )
    comparison.enter()
    comparison.show(comparison.planes[:1])
    assert changes == []
    views.layoutNode.SetViewArrangement(views.layoutNode.SlicerLayoutOneUp3DView)
    assert changes == [True]
    comparison.leave()
    assert views.layoutNode.GetViewArrangement() == views.layoutNode.SlicerLayoutOneUp3DView
    views.layoutNode.SetViewArrangement(views.layoutNode.SlicerLayoutFourUpView)
    assert changes == [True]


def test_our_own_layout_is_never_taken_for_the_users(case, views):
    comparisonOf(case).enter()
    comparison = comparisonOf(case)
    comparison.enter()
    comparison.leave()
    assert views.layoutNode.GetViewArrangement() == views.layoutNode.SlicerLayoutFourUpView


def test_a_scene_saved_while_comparing_does_not_ask_for_our_layout(case, views, scene):
    comparison = comparisonOf(case)

    def savedText() -> str:
        scene.SetSaveToXMLString(1)
        scene.Commit()
        scene.SetSaveToXMLString(0)
        return scene.GetSceneXMLString()

    comparison.enter()
    assert "currentViewArrangement" not in savedText()
    comparison.leave()
    assert f'currentViewArrangement="{views.layoutNode.SlicerLayoutFourUpView}"' in savedText()


def test_the_comparison_can_be_entered_again(case, views):
    for _ in range(2):
        comparison = comparisonOf(case)
        comparison.enter()
        assert composite(views, 1, "original").GetBackgroundVolumeID() == case[0].GetID()
        comparison.leave()


def test_planes_are_derived_from_the_labels_where_none_was_acquired(views):
    original, _ = hearts.addPicture()
    upsampled = Nodes.addVolume(hearts.dense(hearts.picture(), 4), "dense")
    planes = LaxPlanes.derivedPlanes(hearts.dense(hearts.labels(), 4), upsampled)
    assert {plane.name for plane in planes} == {"2ch", "3ch", "4ch"}
    axis_ras = HEART[:, 2] * [-1, -1, 1]
    for plane in planes:
        assert abs(plane.sliceToRas[:3, 2] @ axis_ras) < 0.1
    comparison = LaxLayout.LaxComparison(original, upsampled, planes)
    comparison.enter()
    assert comparison.columns == ("original", "upsampled")
    assert composite(views, 2, "upsampled").GetBackgroundVolumeID() == upsampled.GetID()


def test_a_transform_above_everything_moves_the_planes_too(case):
    original, _, two, four = case
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = phantoms.rotation(8), [5, 60, -9]
    before = [plane.sliceToRas for plane in LaxPlanes.acquiredPlanes(original)]
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    for node in (original, two, four):
        node.SetAndObserveTransformNodeID(transform.GetID())
    after = [plane.sliceToRas for plane in LaxPlanes.acquiredPlanes(original)]
    for old, new in zip(before, after, strict=True):
        assert np.allclose(new, matrix @ old, atol=1e-6)


def test_without_any_plane_the_reason_is_said():
    volume, _ = hearts.addPicture()
    with pytest.raises(ModuleError) as caught:
        LaxLayout.LaxComparison(volume, volume, [])
    assert caught.value.failure.code == "no-long-axis"
