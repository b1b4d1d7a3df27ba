// $artifact on Android: depend on org.pytorch:executorch-android, copy the file from assets/ to the app's storage.
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

private const val CHANNELS = $channels
private const val HEIGHT = $height
private const val WIDTH = $width
private val MEAN = floatArrayOf($mean_f)
private val STD = floatArrayOf($std_f)

/** path: of $artifact. */
class Network(path: String) {
    private val module = Module.load(path)

    /**
     * Scores of one image, given as bytes [HEIGHT, WIDTH, CHANNELS], $colour. Compare with sample/expected_0.npy.
     * A photo must be upright: BitmapFactory leaves the EXIF orientation aside; lay transparency on white.
     */
    fun scores(image: ByteArray): FloatArray {
        val x = FloatArray(CHANNELS * HEIGHT * WIDTH)
        for (c in 0 until CHANNELS)
            for (i in 0 until HEIGHT * WIDTH)
                x[c * HEIGHT * WIDTH + i] = ((image[i * CHANNELS + c].toInt() and 0xff) / 255f - MEAN[c]) / STD[c]
        val shape = longArrayOf(1, CHANNELS.toLong(), HEIGHT.toLong(), WIDTH.toLong())
        return module.forward(EValue.from(Tensor.fromBlob(x, shape)))[0].toTensor().dataAsFloatArray
    }
}
