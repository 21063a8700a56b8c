// The report's 3D view: ventricles that beat, with long-axis pictures standing in them. Runs offline, from the page alone.
//
// Reads the scene from <script type="application/json" id="calid-scene"> and draws into #calid-view. The scene is written
// by viewer.py, which says what is in it. After a change run `npm ci && npm run build` here; the result is committed.

import { Camera, Geometry, Mesh, Orbit, Program, Renderer, Texture, Transform, Vec3 } from "ogl";

const SURFACE_VERTEX = `
  attribute vec3 position, normal;
  uniform mat4 modelViewMatrix, projectionMatrix;
  uniform mat3 normalMatrix;
  varying vec3 vNormal, vToEye;
  void main() {
    vec4 place = modelViewMatrix * vec4(position, 1.0);
    vNormal = normalMatrix * normal;
    vToEye = -place.xyz;
    gl_Position = projectionMatrix * place;
  }`;

const SURFACE_FRAGMENT = `
  precision highp float;
  uniform vec3 color;
  uniform float opacity;
  varying vec3 vNormal, vToEye;
  void main() {
    vec3 normal = normalize(vNormal), toEye = normalize(vToEye);
    if (!gl_FrontFacing) normal = -normal;
    float facing = max(dot(normal, toEye), 0.0);
    vec3 key = normalize(vec3(0.35, 0.6, 0.75));
    float light = 0.34 + 0.5 * max(dot(normal, key), 0.0) + 0.22 * facing;
    float shine = 0.16 * pow(max(dot(reflect(-key, normal), toEye), 0.0), 24.0);
    float rim = opacity < 1.0 ? 0.55 * pow(1.0 - facing, 2.0) : 0.0;
    gl_FragColor = vec4(color * light + shine, min(opacity + rim, 1.0));
  }`;

const PICTURE_VERTEX = `
  attribute vec3 position;
  attribute vec2 uv;
  uniform mat4 modelViewMatrix, projectionMatrix;
  varying vec2 vUv;
  void main() { vUv = uv; gl_Position = projectionMatrix * modelViewMatrix * vec4(position, 1.0); }`;

const PICTURE_FRAGMENT = `
  precision highp float;
  uniform sampler2D picture;
  varying vec2 vUv;
  void main() {
    vec4 texel = texture2D(picture, vUv);
    if (texel.a < 0.5) discard;
    gl_FragColor = vec4(texel.rgb, 1.0);
  }`;

/** Base64 of little-endian 16-bit numbers. */
function decoded(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
}

/** Unit normals per point: the sum of the triangles' area vectors around it. */
function pointNormals(points, triangles) {
  const normals = new Float32Array(points.length);
  for (let t = 0; t < triangles.length; t += 3) {
    const [a, b, c] = [3 * triangles[t], 3 * triangles[t + 1], 3 * triangles[t + 2]];
    const u = [0, 1, 2].map((axis) => points[b + axis] - points[a + axis]);
    const v = [0, 1, 2].map((axis) => points[c + axis] - points[a + axis]);
    const across = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    for (const corner of [a, b, c]) for (let axis = 0; axis < 3; axis++) normals[corner + axis] += across[axis];
  }
  for (let i = 0; i < normals.length; i += 3) {
    const length = Math.hypot(normals[i], normals[i + 1], normals[i + 2]) || 1;
    for (let axis = 0; axis < 3; axis++) normals[i + axis] /= length;
  }
  return normals;
}

function surfaceGeometry(gl, scene, frame) {
  const points = Float32Array.from(decoded(frame.points), (value, i) => scene.low[i % 3] + scene.step * value);
  const triangles = decoded(frame.triangles);
  return new Geometry(gl, {
    position: { size: 3, data: points },
    normal: { size: 3, data: pointNormals(points, triangles) },
    index: { data: triangles },
  });
}

function surfaceMesh(gl, scene, structure) {
  const seeThrough = structure.opacity < 1;
  const program = new Program(gl, {
    vertex: SURFACE_VERTEX,
    fragment: SURFACE_FRAGMENT,
    uniforms: {
      color: { value: structure.rgb.map((part) => part / 255) },
      opacity: { value: structure.opacity },
    },
    transparent: seeThrough,
    depthWrite: !seeThrough,
    cullFace: seeThrough ? gl.BACK : false,
  });
  const geometries = structure.frames.map((frame) => frame && surfaceGeometry(gl, scene, frame));
  const mesh = new Mesh(gl, { geometry: geometries.find(Boolean), program });
  // Neighbors share their border exactly: a see-through one is pushed back so that the two do not flicker.
  mesh.onBeforeRender(() => {
    gl.enable(gl.POLYGON_OFFSET_FILL);
    gl.polygonOffset(seeThrough ? 2 : 0, seeThrough ? 2 : 0);
  });
  mesh.onAfterRender(() => gl.disable(gl.POLYGON_OFFSET_FILL));
  return {
    mesh,
    show(frame) {
      mesh.visible = this.wanted && Boolean(geometries[frame]);
      if (geometries[frame]) mesh.geometry = geometries[frame];
    },
    wanted: true,
  };
}

function pictureMesh(gl, plane, redraw) {
  const textures = plane.frames.map((source) => {
    const texture = new Texture(gl, { generateMipmaps: false, flipY: false });
    const image = new Image();
    image.onload = () => {
      texture.image = image;
      redraw();
    };
    image.src = source;
    return texture;
  });
  const program = new Program(gl, {
    vertex: PICTURE_VERTEX,
    fragment: PICTURE_FRAGMENT,
    uniforms: { picture: { value: textures[0] } },
    cullFace: false,
  });
  const geometry = new Geometry(gl, {
    position: { size: 3, data: new Float32Array(plane.corners.flat()) },
    uv: { size: 2, data: new Float32Array([0, 0, 1, 0, 0, 1, 1, 1]) },
    index: { data: new Uint16Array([0, 2, 1, 1, 2, 3]) },
  });
  const mesh = new Mesh(gl, { geometry, program });
  return {
    mesh,
    show(frame) {
      mesh.visible = this.wanted;
      program.uniforms.picture.value = textures[frame] || textures[0];
    },
    wanted: false,
  };
}

function element(tag, properties, parent) {
  return parent.appendChild(Object.assign(document.createElement(tag), properties));
}

/** A check box that shows or hides one part. */
function toggle(bar, name, part, redraw) {
  const label = element("label", {}, bar);
  const box = element("input", { type: "checkbox", checked: part.wanted }, label);
  label.append(` ${name}`);
  box.addEventListener("change", () => {
    part.wanted = box.checked;
    redraw();
  });
}

function play(bar, scene, setFrame) {
  if (scene.times.length < 2) return;
  const button = element("button", { type: "button", textContent: "Pause" }, bar);
  const slider = element("input", { type: "range", min: 0, max: scene.times.length - 1, value: 0 }, bar);
  slider.setAttribute("aria-label", "Cardiac phase");
  const time = element("output", {}, bar);
  const cycle = (scene.times.at(-1) - scene.times[0]) * (scene.times.length / (scene.times.length - 1));
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const show = (frame) => {
    slider.value = frame;
    time.textContent = `${Math.round(scene.times[frame])} ms`;
    setFrame(frame);
  };
  const setPlaying = (value) => {
    playing = value;
    button.textContent = playing ? "Pause" : "Play";
  };
  button.addEventListener("click", () => setPlaying(!playing));
  slider.addEventListener("input", () => {
    setPlaying(false);
    show(Number(slider.value));
  });
  setPlaying(playing);
  show(0);
  let last = 0;
  const tick = (now) => {
    const frame = Math.floor(((now % cycle) / cycle) * scene.times.length);
    if (playing && frame !== last) show((last = frame));
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}

function start(view, scene) {
  // preserveDrawingBuffer: so that the view can be saved as a picture.
  const renderer = new Renderer({ dpr: Math.min(devicePixelRatio, 2), antialias: true, preserveDrawingBuffer: true });
  const { gl } = renderer;
  gl.clearColor(...scene.ground.map((part) => part / 255), 1);
  gl.canvas.setAttribute("role", "img");
  gl.canvas.setAttribute("aria-label", "Ventricles in 3D; drag to turn, scroll to come nearer");
  view.prepend(gl.canvas);
  const camera = new Camera(gl, { fov: 28, near: 10, far: 2000 });
  const target = new Vec3(...scene.center);
  camera.position.set(scene.center[0], scene.center[1] + 0.2 * scene.radius, scene.center[2] + 3.7 * scene.radius);
  const controls = new Orbit(camera, { element: gl.canvas, target, minDistance: scene.radius, maxDistance: 900 });
  const world = new Transform();
  let frame = 0;
  const parts = [];
  let stale = true; // drawn only when something changed, so that an open report costs nothing
  const redraw = () => {
    parts.forEach((part) => part.show(frame));
    stale = true;
  };
  const bar = element("div", { className: "bar" }, view);
  for (const structure of scene.structures) {
    const part = surfaceMesh(gl, scene, structure);
    parts.push(part);
    toggle(bar, structure.name, part, redraw);
  }
  for (const plane of scene.planes) {
    const part = pictureMesh(gl, plane, redraw);
    parts.push(part);
    toggle(bar, plane.name, part, redraw);
  }
  parts.forEach((part) => part.mesh.setParent(world));
  play(bar, scene, (chosen) => {
    frame = chosen;
    redraw();
  });
  redraw();
  const resize = () => {
    renderer.setSize(view.clientWidth, Math.round(Math.min(view.clientWidth * 0.62, 620)));
    camera.perspective({ aspect: gl.canvas.width / gl.canvas.height });
    stale = true;
  };
  new ResizeObserver(resize).observe(view);
  resize();
  const draw = () => {
    requestAnimationFrame(draw);
    const before = camera.position.clone();
    const aim = target.clone();
    controls.update();
    if (!stale && camera.position.squaredDistance(before) < 1e-6 && target.squaredDistance(aim) < 1e-6) return;
    stale = false;
    renderer.render({ scene: world, camera });
    view.dataset.drawn = Number(view.dataset.drawn || 0) + 1;
  };
  draw();
}

const view = document.getElementById("calid-view");
const source = document.getElementById("calid-scene");
if (view && source) {
  const probe = document.createElement("canvas");
  if (probe.getContext("webgl2") || probe.getContext("webgl")) start(view, JSON.parse(source.textContent));
  else view.textContent = "This browser has no WebGL, which the 3D view needs; the still pictures below show the same.";
}
