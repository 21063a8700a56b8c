"""Surfaces are closed, face outwards, lie in patient space, keep the volume and fit their neighbors."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from calid.errors import InputError, OutputError
from calid.heart.surfaces import distances_mm, surface, surfaces, without_surface, write_surface
from calid.images.files import read_stack
from calid.labels import LV_CAVITY, MYOCARDIUM, RV_CAVITY
from calid.stack import Stack
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkFiltersCore import vtkFeatureEdges, vtkPolyDataConnectivityFilter
from vtkmodules.vtkFiltersModeling import vtkSelectEnclosedPoints
from vtkmodules.vtkIOGeometry import vtkOBJReader, vtkSTLReader
from vtkmodules.vtkIOXML import vtkXMLPolyDataReader

LV, WALL, RV = LV_CAVITY.value, MYOCARDIUM.value, RV_CAVITY.value


@pytest.fixture(scope="module", params=[8.0, 1.6], ids=["sparse", "dense"])
def heart(request):
    labels = phantoms.heart_labels((1.5, 1.4, request.param), seed=2)
    return labels, surfaces(labels)


def points_of(mesh) -> np.ndarray:
    return vtk_to_numpy(mesh.GetPoints().GetData()).astype(float)


def triangles_of(mesh) -> np.ndarray:
    return vtk_to_numpy(mesh.GetPolys().GetConnectivityArray()).reshape(-1, 3)


def voxel_volume_ml(labels: Stack, label: int) -> float:
    return (labels.voxels[0] == label).sum() * abs(np.linalg.det(labels.affine[:3, :3])) / 1000


def bad_edges(mesh) -> int:
    edges = vtkFeatureEdges()
    edges.SetInputData(mesh)
    edges.FeatureEdgesOff()
    edges.ManifoldEdgesOff()
    edges.BoundaryEdgesOn()
    edges.NonManifoldEdgesOn()
    edges.Update()
    return edges.GetOutput().GetNumberOfCells()


def test_every_structure_has_a_surface(heart):
    assert set(heart[1]) == {LV, WALL, RV}


@pytest.mark.parametrize("label", [LV, WALL, RV])
def test_a_surface_is_watertight_and_in_one_piece(heart, label):
    mesh = heart[1][label]
    assert bad_edges(mesh) == 0
    pieces = vtkPolyDataConnectivityFilter()
    pieces.SetInputData(mesh)
    pieces.SetExtractionModeToAllRegions()
    pieces.Update()
    assert pieces.GetNumberOfExtractedRegions() == 1


@pytest.mark.parametrize("label", [LV, WALL, RV])
def test_a_surface_keeps_the_volume_of_its_labels(heart, label):
    labels, meshes = heart
    assert phantoms.mesh_volume_ml(meshes[label]) == pytest.approx(voxel_volume_ml(labels, label), rel=0.01)


def test_the_surfaces_of_a_fine_heart_have_the_volumes_of_the_formula():
    meshes = surfaces(phantoms.heart_labels((1.2, 1.2, 1.2)))
    assert phantoms.mesh_volume_ml(meshes[LV]) == pytest.approx(phantoms.lv_volume_ml(), rel=0.02)
    assert phantoms.mesh_volume_ml(meshes[WALL]) == pytest.approx(phantoms.myocardium_volume_ml(), rel=0.02)


@pytest.mark.parametrize("label", [LV, WALL, RV])
def test_triangles_and_normals_face_outwards(heart, label):
    mesh = heart[1][label]
    points, triangles = points_of(mesh), triangles_of(mesh)
    a, b, c = (points[triangles[:, corner]] for corner in range(3))
    across = np.cross(b - a, c - a)
    assert np.einsum("ij,ij->", a - points.mean(axis=0), across) / 6 > 0
    normals = vtk_to_numpy(mesh.GetPointData().GetNormals())
    agree = np.einsum("ij,ij->i", across, normals[triangles[:, 0]])
    assert (agree > 0).mean() > 0.99


def test_a_mirrored_grid_still_gives_outward_surfaces():
    labels = phantoms.heart_labels((1.5, 1.4, 8.0))
    mirror = labels.affine.copy()
    mirror[:3, 0] *= -1
    mesh = surface(Stack(labels.voxels, mirror), LV)
    points, triangles = points_of(mesh), triangles_of(mesh)
    a, b, c = (points[triangles[:, corner]] for corner in range(3))
    assert np.einsum("ij,ij->", a - points.mean(axis=0), np.cross(b - a, c - a)) > 0


@pytest.mark.parametrize("label", [LV, RV])
def test_a_surface_lies_around_its_voxels_in_patient_space(heart, label):
    labels, meshes = heart
    where = np.argwhere(labels.voxels[0] == label)[:, ::-1]
    center = labels.to_lps(where).mean(axis=0)
    points = points_of(meshes[label])
    triangles = triangles_of(meshes[label])
    a, b, c = (points[triangles[:, corner]] for corner in range(3))
    weights = np.einsum("ij,ij->i", a - center, np.cross(b - a, c - a))
    centroid = center + ((a + b + c - 3 * center) / 4 * weights[:, None]).sum(axis=0) / weights.sum()
    np.testing.assert_allclose(centroid, center, atol=1.0)


def test_neighbors_share_their_border_without_gap_or_overlap(heart):
    _, meshes = heart
    wall, lv = points_of(meshes[WALL]), points_of(meshes[LV])
    rng = np.random.default_rng(0)
    low, high = lv.min(axis=0) - 15, lv.max(axis=0) + 15
    probes = rng.uniform(low, high, (20000, 3))
    inside = {label: enclosed(probes, mesh) for label, mesh in meshes.items()}
    counts = np.sum(list(inside.values()), axis=0)
    assert (counts > 1).mean() < 0.002
    heart_frame, base = phantoms.heart_frame(2), np.array([12.0, -31.0, 7.0])
    truth = phantoms.heart_at((probes - base) @ heart_frame)
    deep = np.linalg.norm(((probes - base) @ heart_frame) / [32.0, 32.0, 80.0], axis=1) < 0.85
    below = ((probes - base) @ heart_frame)[:, 2] < -10
    assert (counts[(truth > 0) & deep & below] == 0).mean() < 0.01
    assert wall.size > lv.size


def enclosed(probes: np.ndarray, mesh) -> np.ndarray:
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonDataModel import vtkPolyData

    cloud, points = vtkPolyData(), vtkPoints()
    points.SetData(numpy_to_vtk(probes, deep=True))
    cloud.SetPoints(points)
    select = vtkSelectEnclosedPoints()
    select.SetInputData(cloud)
    select.SetSurfaceData(mesh)
    select.Update()
    return vtk_to_numpy(select.GetOutput().GetPointData().GetArray("SelectedPoints")).astype(bool)


def test_the_surface_of_a_sparse_stack_has_no_steps():
    labels = phantoms.heart_labels((1.5, 1.4, 10.0))
    mesh = surface(labels, LV)
    local = (points_of(mesh) - np.array([12.0, -31.0, 7.0])) @ phantoms.heart_frame(0)
    wall = local[(local[:, 2] < -10) & (local[:, 2] > -50)]
    radius = np.hypot(wall[:, 0], wall[:, 1])
    expected = phantoms.LV_RADIUS_MM * np.sqrt(1 - (wall[:, 2] / phantoms.LV_LENGTH_MM) ** 2)
    assert np.abs(radius - expected).mean() < 0.6
    assert np.abs(radius - expected).max() < 2.0


def test_distances_to_a_surface_moved_aside_are_at_most_the_move_and_weigh_by_area():
    labels = phantoms.heart_labels((1.5, 1.4, 1.6))
    moved = labels.affine.copy()
    moved[:3, 3] += 3 * labels.directions_lps[:, 2]
    here, there = surface(labels, LV), surface(Stack(labels.voxels, moved), LV)
    places, distances, areas = distances_mm(here, there)
    assert distances.max() <= 3.01
    assert distances_mm(here, here)[1].max() < 1e-6
    radius, length = phantoms.LV_RADIUS_MM, phantoms.LV_LENGTH_MM
    side = np.pi * radius * length * np.pi / 2  # of half a slender ellipsoid, within 5 %
    assert areas.sum() == pytest.approx(side + np.pi * radius**2, rel=0.06)
    base = np.abs((places - places.mean(axis=0)) @ phantoms.heart_frame(0)[:, 2]).argmax()
    assert distances[base] > 1.0


def test_a_missing_label_is_named():
    labels = phantoms.heart_labels((1.5, 1.4, 8.0))
    without = labels.with_voxels(np.where(labels.voxels == RV, 0, labels.voxels))
    with pytest.raises(InputError, match="no voxel with label 3"):
        surface(without, RV)


def test_a_frame_without_labels_has_no_surfaces():
    labels = phantoms.heart_labels((1.5, 1.4, 8.0))
    assert surfaces(labels.with_voxels(np.zeros_like(labels.voxels))) == {}


@pytest.mark.parametrize(
    ("extension", "reader_type"), [(".vtp", vtkXMLPolyDataReader), (".stl", vtkSTLReader), (".obj", vtkOBJReader)]
)
def test_a_written_surface_reads_back_in_place(heart, tmp_path, extension, reader_type):
    mesh = heart[1][LV]
    path = tmp_path / f"lv{extension}"
    write_surface(mesh, path)
    reader = reader_type()
    reader.SetFileName(str(path))
    reader.Update()
    np.testing.assert_allclose(reader.GetOutput().GetBounds(), mesh.GetBounds(), atol=1e-3)
    assert reader.GetOutput().GetNumberOfPolys() == mesh.GetNumberOfPolys()
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_an_existing_surface_file_is_kept_unless_asked_otherwise(heart, tmp_path):
    path = tmp_path / "lv.stl"
    path.write_text("mine", encoding="ascii")
    with pytest.raises(OutputError, match="exists already"):
        write_surface(heart[1][LV], path)
    assert path.read_text(encoding="ascii") == "mine"
    write_surface(heart[1][LV], path, overwrite=True)
    assert path.stat().st_size > 1000


def test_an_unknown_surface_format_is_refused(heart, tmp_path):
    with pytest.raises(OutputError, match=r"\.vtp or \.stl or \.obj"):
        write_surface(heart[1][LV], tmp_path / "lv.ply")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_reported(heart, tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        write_surface(heart[1][LV], tmp_path / "nowhere" / "lv.stl")


@pytest.mark.data
@pytest.mark.parametrize("patient", ["patient061", "patient070", "patient075"])
def test_surfaces_of_experts_labels_are_watertight_and_keep_their_volume(data_folder, patient):
    path = next((data_folder / "acdc" / patient).glob("*_gt.nii.gz"))
    raw = read_stack(path)
    labels = raw.with_voxels(np.array([0, RV, WALL, LV], np.uint8)[raw.voxels.astype(int)])
    for label, mesh in surfaces(labels).items():
        assert bad_edges(mesh) == 0
        assert phantoms.mesh_volume_ml(mesh) == pytest.approx(voxel_volume_ml(labels, label), rel=0.02)


# --- Labels that are too small ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiny", [(0, 4, 20, 20), (0, 0, 0, 0), (0, -1, -1, -1), "one slice"])
def test_a_label_too_small_for_a_surface_is_left_out_and_named(tiny):
    labels = phantoms.heart_labels((1.5, 1.4, 4.0), seed=2)
    voxels = np.where(labels.voxels == RV, 0, labels.voxels)
    if tiny == "one slice":
        place = tuple(np.argwhere(labels.voxels == RV)[0])
        voxels[place] = RV
    else:
        voxels[tiny] = RV
    few = labels.with_voxels(voxels)
    found = surfaces(few)
    assert set(found) == {LV, WALL}
    assert bad_edges(found[LV]) == 0
    assert without_surface(few, [set(found)]) == ["Right ventricle is too small for a surface and was left out."]
    with pytest.raises(InputError, match="only 1 voxels"):
        surface(few, RV)


@pytest.mark.parametrize("size", range(1, 8))
def test_small_labels_of_every_size_have_a_surface_or_are_left_out(size):
    labels = phantoms.heart_labels((1.5, 1.4, 8.0), seed=2)
    voxels = np.zeros_like(labels.voxels)
    voxels[:, 2 : 2 + size // 3 + 1, 10 : 10 + size, 10 : 10 + size] = LV
    found = surfaces(labels.with_voxels(voxels))
    assert set(found) <= {LV}
    for mesh in found.values():
        assert bad_edges(mesh) == 0
        assert phantoms.mesh_volume_ml(mesh) > 0


def test_labels_of_single_voxels_alone_have_no_surfaces():
    labels = phantoms.heart_labels((1.5, 1.4, 8.0), seed=2)
    voxels = np.zeros_like(labels.voxels)
    for label, place in ((LV, 5), (WALL, 9), (RV, 13)):
        voxels[0, 1, place, place] = label
    assert surfaces(labels.with_voxels(voxels)) == {}
