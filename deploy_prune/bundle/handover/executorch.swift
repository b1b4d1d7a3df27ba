// $artifact on iOS: add github.com/pytorch/executorch as a Swift package, products executorch and backend_xnnpack.
import ExecuTorch

let channels = $channels, height = $height, width = $width
let mean: [Float] = [$mean], std: [Float] = [$std]

/// Scores of one image, given as bytes [height, width, channels], $colour. Compare with sample/expected_0.npy.
/// A photo must be upright: CGImage leaves the EXIF orientation aside; lay transparency on white.
/// path: of $artifact in the app's bundle.
func scores(image: [UInt8], path: String) throws -> [Float] {
  var x = [Float](repeating: 0, count: channels * height * width)
  for c in 0..<channels {
    for i in 0..<height * width {
      x[c * height * width + i] = (Float(image[i * channels + c]) / 255 - mean[c]) / std[c]
    }
  }
  let module = Module(filePath: path)
  try module.load("forward")
  let found: Tensor<Float> = try module.forward(Tensor<Float>(x, shape: [1, channels, height, width]))[0].tensor()!
  return found.scalars()
}
