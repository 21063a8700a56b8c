"""Meshes for engineers: closed, in their place, and with the volumes of the labels, in every format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import phantoms
import pytest
from calid.__main__ import main
from calid.errors import InputError
from calid.heart import meshes, surfaces
from calid.images.files import write_labels, write_stack
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonDataModel import vtkPolyData
from vtkmodules.vtkFiltersCore import vtkFeatureEdges
from vtkmodules.vtkFiltersGeometry import vtkCompositeDataGeometryFilter
from vtkmodules.vtkFiltersVerdict import vtkCellSizeFilter
from vtkmodules.vtkIOGeometry import vtkGLTFReader, vtkOBJReader, vtkSTLReader
from vtkmodules.vtkIOXML import vtkXMLPolyDataReader, vtkXMLUnstructuredGridReader

READERS = {"vtp": vtkXMLPolyDataReader, "stl": vtkSTLReader, "obj": vtkOBJReader, "glb": vtkGLTFReader}
HEART = phantoms.heart_labels((2.0, 2.0, 4.0))


def read(path: Path, kind: str) -> vtkPolyData:
    reader = READERS[kind]()
    reader.SetFileName(str(path))
    reader.Update()
    if kind != "glb":
        return reader.GetOutput()
    flat = vtkCompositeDataGeometryFilter()
    flat.SetInputData(reader.GetOutput())
    flat.Update()
    return flat.GetOutput()


def open_edges(mesh: vtkPolyData) -> int:
    edges = vtkFeatureEdges()
    edges.SetInputData(mesh)
    edges.FeatureEdgesOff()
    edges.ManifoldEdgesOff()
    edges.Update()
    return edges.GetOutput().GetNumberOfLines()


@pytest.fixture(scope="module")
def wall() -> vtkPolyData:
    return meshes.biventricular_wall(HEART)


@pytest.mark.parametrize("kind", meshes.FORMATS)
def test_surfaces_in_every_format_are_closed_and_have_the_volume_of_their_labels(tmp_path, kind):
    labels = HEART.with_voxels(np.where(HEART.voxels == 2, 0, HEART.voxels))
    write_labels(labels, tmp_path / "labels.nrrd")
    assert main(["mesh", str(tmp_path / "labels.nrrd"), str(tmp_path / "out"), "--format", kind]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"frame0000-LV.{kind}",
        f"frame0000-RV.{kind}",
    ]
    for key, value in (("LV", 1), ("RV", 3)):
        mesh = read(tmp_path / "out" / f"frame0000-{key}.{kind}", kind)
        voxels = (labels.voxels == value).sum() * np.prod(labels.spacing_mm) / 1000
        scale = meshes._MM_PER_M**3 if kind == "glb" else 1
        assert scale * phantoms.mesh_volume_ml(mesh) == pytest.approx(voxels, rel=0.02)
        assert open_edges(mesh) == 0


def test_gltf_has_the_head_up_and_the_chest_to_the_front(tmp_path):
    write_labels(HEART, tmp_path / "labels.nrrd")
    assert main(["mesh", str(tmp_path / "labels.nrrd"), str(tmp_path / "out"), "--format", "glb"]) == 0
    found = np.array(read(tmp_path / "out" / "frame0000-LV.glb", "glb").GetCenter()) * 1000
    inside = HEART.to_lps(np.argwhere(HEART.voxels[0] == 1)[:, ::-1])
    middle = (inside.min(axis=0) + inside.max(axis=0)) / 2
    np.testing.assert_allclose(found, [middle[0], middle[2], -middle[1]], atol=2)


def test_the_wall_of_both_ventricles_is_one_closed_surface_with_all_tags_where_they_belong(wall):
    assert open_edges(wall) == 0
    points, triangles = surfaces.points_and_triangles(wall)
    tags = vtk_to_numpy(wall.GetCellData().GetArray("tag"))
    assert set(tags) == set(meshes.TAGS.values())
    corners = points[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas, centers = np.linalg.norm(normals, axis=1) / 2, corners.mean(axis=1)
    heart = phantoms.heart_frame()
    local = (centers - np.array([12.0, -31.0, 7.0])) @ heart
    base = tags == meshes.TAGS["base"]
    slant = np.abs((normals[base] / np.linalg.norm(normals[base], axis=1)[:, None]) @ heart[:, 2])
    assert np.average(slant, weights=areas[base]) > 0.9
    radius = np.linalg.norm(local[tags == meshes.TAGS["lv_endo"]] / [22.0, 22.0, 70.0], axis=1)
    assert np.abs(radius - 1).mean() < 0.06
    away = np.linalg.norm(local[tags == meshes.TAGS["epi"]] / [22.0, 22.0, 70.0], axis=1)
    assert np.percentile(away, 1) > 1.05  # a few triangles lie on the edge to the base
    rv = np.linalg.norm((local[tags == meshes.TAGS["rv_endo"]] - phantoms.RV_CENTER_MM) / phantoms.RV_RADII_MM, axis=1)
    assert np.median(np.abs(rv - 1)) < 0.1


def test_the_cavities_that_the_wall_encloses_keep_their_volumes(wall):
    """By the divergence theorem over the endocardia, with the plane of the base as the lid."""
    points, triangles = surfaces.points_and_triangles(wall)
    tags = vtk_to_numpy(wall.GetCellData().GetArray("tag"))
    apexward, base = meshes._base_plane(HEART, 0)
    fine = phantoms.heart_labels((2.0, 2.0, 0.5))
    is_below = (fine.to_lps(np.eye(3)[2] * np.arange(fine.num_slices)[:, None]) - base) @ apexward > 0
    found = {}
    for name, value in (("lv_endo", 1), ("rv_endo", 3)):
        corners = points[triangles[tags == meshes.TAGS[name]]] - base
        found[name] = abs(np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6000)
        voxels = (fine.voxels[0, is_below] == value).sum() * np.prod(fine.spacing_mm) / 1000
        assert found[name] == pytest.approx(voxels, rel=0.02), name
    height = (base - np.array([12.0, -31.0, 7.0])) @ phantoms.heart_frame()[:, 2] / 70.0
    # Half an ellipsoid from its apex to this height: the integral of 1 - z^2 from -1.
    truth = np.pi * 22.0**2 * 70.0 * (height - height**3 / 3 + 2 / 3) / 1000
    assert found["lv_endo"] == pytest.approx(truth, rel=0.02)
    assert apexward @ phantoms.heart_frame()[:, 2] == pytest.approx(-1, abs=1e-6)


def test_tetrahedra_fill_the_wall(wall, tmp_path):
    pytest.importorskip("tetgen")
    grid = meshes.tetrahedra(wall)
    sizes = vtkCellSizeFilter()
    sizes.SetInputData(grid)
    sizes.Update()
    volumes = vtk_to_numpy(sizes.GetOutput().GetCellData().GetArray("Volume"))
    assert (np.abs(volumes) > 0).all()
    assert np.abs(volumes).sum() / 1000 == pytest.approx(phantoms.mesh_volume_ml(wall), rel=0.02)
    meshes.write_tetrahedra(grid, tmp_path / "wall.vtu")
    reader = vtkXMLUnstructuredGridReader()
    reader.SetFileName(str(tmp_path / "wall.vtu"))
    reader.Update()
    assert reader.GetOutput().GetNumberOfCells() == grid.GetNumberOfCells()


def test_what_is_no_segmentation_or_no_frame_is_refused(tmp_path, capsys):
    write_stack(phantoms.pictured(HEART), tmp_path / "image.nrrd")
    assert main(["mesh", str(tmp_path / "image.nrrd"), str(tmp_path / "out")]) == 2
    assert "holds no labels" in capsys.readouterr().err
    write_labels(HEART, tmp_path / "labels.nrrd")
    assert main(["mesh", str(tmp_path / "labels.nrrd"), str(tmp_path / "out"), "--frame", "3"]) == 2
    assert "no frame 3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no surface of Right ventricle"):
        meshes.biventricular_wall(HEART.with_voxels(np.where(HEART.voxels == 3, 0, HEART.voxels)))
