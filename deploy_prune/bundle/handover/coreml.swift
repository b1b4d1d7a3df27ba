// $artifact on iOS 16 or macOS 13: drag it into the Xcode project, which compiles it.
import CoreML

let channels = $channels, height = $height, width = $width
let mean: [Float] = [$mean], std: [Float] = [$std]

/// Scores of one image, given as bytes [height, width, channels], $colour. Compare with sample/expected_0.npy.
/// A photo must be upright: CGImage leaves the EXIF orientation aside; lay transparency on white.
/// model: `try MLModel(contentsOf: Bundle.main.url(forResource: "model", withExtension: "mlmodelc")!)`.
func scores(image: [UInt8], model: MLModel) throws -> [Float] {
  let x = try MLMultiArray(shape: [1, $channels, $height, $width], dataType: .float32)
  let values = x.dataPointer.bindMemory(to: Float.self, capacity: x.count)
  for c in 0..<channels {
    for i in 0..<height * width {
      values[c * height * width + i] = (Float(image[i * channels + c]) / 255 - mean[c]) / std[c]
    }
  }
  let fed = try MLDictionaryFeatureProvider(dictionary: ["input": x])
  let found = try model.prediction(from: fed).featureValue(for: "out0")!.multiArrayValue!
  return (0..<found.count).map { found[$$0].floatValue }
}
