// $artifact on Android: depend on com.microsoft.onnxruntime:onnxruntime-android, put the file into assets/.
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.content.Context
import java.nio.FloatBuffer

private const val CHANNELS = $channels
private const val HEIGHT = $height
private const val WIDTH = $width
private val MEAN = floatArrayOf($mean_f)
private val STD = floatArrayOf($std_f)

class Network(context: Context) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession =
        environment.createSession(
            context.assets.open("$artifact").readBytes(),
            // Denormal numbers, left as they are, take many times as long.
            OrtSession.SessionOptions().apply { addConfigEntry("session.set_denormal_as_zero", "1") },
        )

    /**
     * Scores of one image, given as bytes [HEIGHT, WIDTH, CHANNELS], $colour. Compare with sample/expected_0.npy.
     * A photo must be upright: BitmapFactory leaves the EXIF orientation aside; lay transparency on white.
     */
    fun scores(image: ByteArray): FloatArray {
        val x = FloatBuffer.allocate(CHANNELS * HEIGHT * WIDTH)
        for (c in 0 until CHANNELS)
            for (i in 0 until HEIGHT * WIDTH)
                x.put(((image[i * CHANNELS + c].toInt() and 0xff) / 255f - MEAN[c]) / STD[c])
        x.rewind()
        val shape = longArrayOf(1, CHANNELS.toLong(), HEIGHT.toLong(), WIDTH.toLong())
        OnnxTensor.createTensor(environment, x, shape).use { fed ->
            session.run(mapOf(session.inputNames.first() to fed)).use { found ->
                val scores = (found[0] as OnnxTensor).floatBuffer
                return FloatArray(scores.remaining()).also { scores.get(it) }
            }
        }
    }

    override fun close() = session.close()
}
